package doctor

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/host/recipe"
)

// swaps is the heading of /proc/swaps.
const swaps = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

const allCapabilities = "Name:\thatchd\nCapEff:\t000001ffffffffff\n"

// goodHost is a host on which every check passes.
func goodHost() System {
	files := map[string]string{
		"/proc/self/status":                      allCapabilities,
		"/proc/sys/kernel/osrelease":             "6.1.0-41-amd64\n",
		"/proc/meminfo":                          "MemTotal: 8000000 kB\nMemAvailable:    4194304 kB\n",
		"/proc/sys/net/ipv4/ip_forward":          "1\n",
		"/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
		"/proc/cpuinfo":                          "flags\t\t: fpu vmx sse\n",

		"/sys/fs/cgroup/cgroup.controllers":                                "cpuset cpu io memory hugetlb pids rdma misc\n",
		"/sys/fs/cgroup/system.slice/hatch-vms.service/cgroup.controllers": "cpu io memory pids\n",
	}
	return System{
		ReadFile: func(path string) ([]byte, error) {
			text, ok := files[path]
			if !ok {
				return nil, fs.ErrNotExist
			}
			return []byte(text), nil
		},
		Stat:       func(string) (fs.FileInfo, error) { return nil, nil },
		Writable:   func(string) error { return nil },
		OpenDevice: func(string) error { return nil },
		LookPath:   func(program string) (string, error) { return "/usr/bin/" + program, nil },
		Command: func(_ context.Context, program string, _ ...string) (string, error) {
			switch program {
			case "systemctl":
				return "enabled\n", nil
			case "firecracker":
				return "Firecracker v1.15.0\n\n", nil
			}
			return "QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7)\n", nil
		},
		TryInJail:    func(context.Context, string, ...string) error { return nil },
		ProbeKVM:     func() kvm.Result { return kvm.Result{Usable: true, Why: ""} },
		Listen:       func(context.Context, string) error { return nil },
		LookupHost:   func(context.Context, string) ([]string, error) { return []string{"192.0.2.1"}, nil },
		Answers:      func(context.Context, string) ([]string, bool) { return nil, false },
		CreateLinks:  func() error { return nil },
		Chains:       func() ([]Chain, error) { return nil, nil },
		Owned:        func(string, bool) error { return nil },
		FreeMiB:      func(string) (int64, error) { return 50 << 10, nil },
		Reflink:      func(string) (bool, error) { return true, nil },
		MemoryPlace:  placed(memory.Place{Mounted: true, Tmpfs: true, Size: 8 << 30, Used: 512 << 20}),
		MountMemory:  func(string) error { return nil },
		DebianMirror: func([]string) error { return nil },
	}
}

func placed(p memory.Place) func(string) (memory.Place, error) {
	return func(string) (memory.Place, error) { return p, nil }
}

func settings() Settings {
	return Settings{
		DataDir: "/var/lib/hatch", MemoryDir: "/var/lib/hatch/memory", DiskReserveMiB: 512, HTTPAddr: "127.0.0.1:8080", BridgeName: "hatch0", Cgroup: "/hatch", SSHPortMin: 16000, SSHPortMax: 26000, PortMin: 26001, PortMax: 32767,
		ProxyAddr: "127.0.0.1:9090", ProxyDomain: "localhost",
		Driver: "auto", QEMUBin: "qemu-system-x86_64", FirecrackerBin: "firecracker", JailerBin: "jailer", AgentPath: "/usr/bin/hatch-agent", DefaultImage: "/var/lib/hatch/images/default",
	}
}

func TestAGoodHostPassesEverything(t *testing.T) {
	checks := Run(t.Context(), goodHost(), settings())
	if len(checks) != 30 || !Healthy(checks) {
		t.Errorf("%d checks, healthy: %v", len(checks), Healthy(checks))
	}
	seen := map[string]bool{}
	for _, c := range checks {
		if c.Status != Pass || c.Fix != "" || c.Hint != "" {
			t.Errorf("%+v", c)
		}
		if seen[c.Name] || c.Message == "" {
			t.Errorf("name given twice, or no message: %+v", c)
		}
		seen[c.Name] = true
	}
}

// withFile is the good host with one file's text replaced.
func withFile(path, text string) System {
	s := goodHost()
	read := s.ReadFile
	s.ReadFile = func(p string) ([]byte, error) {
		if p == path {
			return []byte(text), nil
		}
		return read(p)
	}
	return s
}

func without(programs ...string) func(string) (string, error) {
	return func(p string) (string, error) {
		if slices.Contains(programs, p) {
			return "", exec.ErrNotFound
		}
		return "/usr/bin/" + p, nil
	}
}

func gone(paths ...string) func(string) (fs.FileInfo, error) {
	return func(p string) (fs.FileInfo, error) {
		for _, g := range paths {
			if strings.HasPrefix(p, g) {
				return nil, fs.ErrNotExist
			}
		}
		return nil, nil
	}
}

func host(change func(*System)) System {
	s := goodHost()
	change(&s)
	return s
}

func TestWhatIsMissing(t *testing.T) {
	drop := Chain{Family: "ip", Table: "filter", Name: "FORWARD", Drops: true}
	for name, tc := range map[string]struct {
		sys     System
		check   string
		status  Status
		message string
		fix     string // part of the command
		hint    string // part of it
	}{
		"not root": {
			sys: withFile("/proc/self/status", "CapEff:\t0000000000000001\n"), check: "privileges", status: Fail,
			message: "no CAP_SETGID, CAP_SETUID, CAP_NET_ADMIN, CAP_SYS_ADMIN", hint: "root",
		},
		"old kernel": {
			sys: withFile("/proc/sys/kernel/osrelease", "5.4.0-1\n"), check: "kernel", status: Fail, message: "too old", hint: "upgrade",
		},
		"no KVM module": {
			sys: host(func(s *System) {
				s.ProbeKVM = func() kvm.Result { return kvm.Result{Why: "there is no /dev/kvm"} }
				s.Stat = gone("/dev/kvm")
			}), check: "kvm", status: Warn, message: "there is no /dev/kvm; VMs run in software", fix: "modprobe kvm_intel",
		},
		"KVM that runs no guests": {
			sys: host(func(s *System) {
				s.ProbeKVM = func() kvm.Result { return kvm.Result{Emulates: true, Why: "it emulates"} }
			}),
			check: "kvm", status: Warn, message: "it emulates", hint: "nested",
		},
		"no QEMU": {
			sys: host(func(s *System) { s.LookPath = without("qemu-system-x86_64", "jailer") }), check: "qemu", status: Fail,
			message: "not installed", fix: "apt-get install -y --no-install-recommends qemu-system-x86",
		},
		"old QEMU": {
			sys: host(func(s *System) {
				s.Command = func(context.Context, string, ...string) (string, error) { return "QEMU emulator version 7.1.0", nil }
			}), check: "qemu", status: Fail, message: "QEMU 7.1 is too old", fix: "qemu-system-x86",
		},
		"no jail": {
			sys: host(func(s *System) {
				s.TryInJail = func(context.Context, string, ...string) error {
					return errors.New("cannot make a mount namespace: operation not permitted")
				}
				s.LookPath = without("jailer")
			}), check: "jail", status: Fail, message: "cannot make a mount namespace: operation not permitted", hint: "in a container",
		},
		"no jail, and Firecracker": {
			sys: host(func(s *System) {
				s.TryInJail = func(context.Context, string, ...string) error { return syscall.EPERM }
			}), check: "jail", status: Warn, message: "operation not permitted", hint: "in a container",
		},
		"no tun": {
			sys: host(func(s *System) { s.OpenDevice = func(string) error { return syscall.ENOENT } }), check: "tun", status: Fail,
			message: "does not exist", fix: "mknod -m 0666 /dev/net/tun c 10 200",
		},
		"tun forbidden": {
			sys: host(func(s *System) { s.OpenDevice = func(string) error { return syscall.EPERM } }), check: "tun", status: Fail,
			message: "cannot be opened", hint: "--device /dev/net/tun",
		},
		"no bridges": {
			sys: host(func(s *System) { s.CreateLinks = func() error { return syscall.EOPNOTSUPP } }), check: "bridge", status: Fail,
			message: "not supported", fix: "modprobe bridge",
		},
		"no nftables": {
			sys:   host(func(s *System) { s.Chains = func() ([]Chain, error) { return nil, syscall.EPROTONOSUPPORT } }),
			check: "nftables", status: Fail, message: "does not respond", fix: "modprobe nf_tables",
		},
		"no forwarding": {
			sys: withFile("/proc/sys/net/ipv4/ip_forward", "0\n"), check: "ip_forward", status: Pass,
			message: "off; hatchd switches it on",
		},
		"a foreign firewall": {
			sys: host(func(s *System) { s.Chains = func() ([]Chain, error) { return []Chain{drop}, nil } }), check: "firewall", status: Warn,
			message: `"ip filter FORWARD"`, fix: "nft insert rule ip filter FORWARD iifname 'hatch0' accept && nft insert rule ip filter FORWARD oifname 'hatch0' accept",
		},
		"a firewall that drops DHCP and DNS": {
			sys: host(func(s *System) {
				s.Chains = func() ([]Chain, error) {
					return []Chain{{Family: "ip", Table: "filter", Name: "INPUT", Input: true, Drops: true}}, nil
				}
			}), check: "firewall", status: Warn,
			message: `"ip filter INPUT" of another firewall drops packets to this host, including guests' DHCP and DNS`,
			fix:     "nft insert rule ip filter INPUT iifname 'hatch0' accept",
		},
		"firewalld": {
			sys: host(func(s *System) {
				s.Chains = func() ([]Chain, error) {
					return []Chain{{Family: "inet", Table: "firewalld", Name: "filter_FORWARD", Drops: true}}, nil
				}
			}), check: "firewall", status: Warn,
			message: `"inet firewalld filter_FORWARD"`, fix: "firewall-cmd --permanent --zone=trusted --add-interface='hatch0'",
		},
		"an unreadable firewall": {
			sys:   host(func(s *System) { s.Chains = func() ([]Chain, error) { return nil, syscall.EPERM } }),
			check: "firewall", status: Warn, message: "not permitted", hint: "root",
		},
		"a port in use": {
			sys:   host(func(s *System) { s.Listen = func(context.Context, string) error { return syscall.EADDRINUSE } }),
			check: "http_port", status: Fail, message: "address already in use", hint: "HATCH_HTTP_ADDR",
		},
		"SSH ports in use": {
			sys:   host(func(s *System) { s.Listen = func(context.Context, string) error { return syscall.EADDRINUSE } }),
			check: "ssh_ports", status: Warn, message: "16000 16001", hint: "HATCH_SSH_PORT_MIN",
		},
		"no cgroups": {
			sys: host(func(s *System) { s.Stat = gone("/sys/fs/cgroup") }), check: "cgroups", status: Warn, message: "v2", hint: "unified",
		},
		"cgroups v1": {
			sys: host(func(s *System) { s.Stat = gone("/sys/fs/cgroup/cgroup.controllers") }), check: "cgroups", status: Pass, message: "VMs' cgroups are in /sys/fs/cgroup/memory/hatch; limits can be set",
		},
		"cgroups without controllers": {
			sys:   withFile("/sys/fs/cgroup/cgroup.controllers", "cpuset\n"),
			check: "cgroups", status: Warn, message: "/sys/fs/cgroup does not have the controllers cpu, memory, pids", hint: "delegate",
		},
		"cgroups read-only": {
			sys:   host(func(s *System) { s.Writable = func(string) error { return syscall.EROFS } }),
			check: "cgroups", status: Warn, message: "read-only", hint: "writable",
		},
		"little memory": {
			sys: withFile("/proc/meminfo", "MemAvailable:  131072 kB\n"), check: "memory", status: Fail, message: "128 MiB are available", hint: "add memory",
		},
		"some memory": {
			sys: withFile("/proc/meminfo", "MemAvailable:  716800 kB\n"), check: "memory", status: Warn, message: "700 MiB", hint: "--memory",
		},
		"no tmpfs can be mounted": {
			sys: host(func(s *System) {
				s.MemoryPlace = func(string) (memory.Place, error) { return memory.Place{}, fs.ErrNotExist }
				s.MountMemory = func(string) error { return syscall.EPERM }
			}), check: "guest_memory", status: Fail, message: "no tmpfs can be mounted for guests' memory: operation not permitted", hint: "CAP_SYS_ADMIN",
		},
		"no tmpfs yet": {
			sys: host(func(s *System) { s.MemoryPlace = placed(memory.Place{}) }), check: "guest_memory", status: Pass,
			message: "hatchd mounts a tmpfs on /var/lib/hatch/memory",
		},
		"an unreadable directory for memory": {
			sys: host(func(s *System) {
				s.MemoryPlace = func(string) (memory.Place, error) { return memory.Place{}, syscall.EACCES }
			}), check: "guest_memory", status: Warn, message: "permission denied", hint: "root",
		},
		"memory on a disk": {
			sys: host(func(s *System) { s.MemoryPlace = placed(memory.Place{Mounted: true, Size: 100 << 30}) }), check: "guest_memory", status: Warn,
			message: "another kind", hint: "unmount",
		},
		"a small tmpfs": {
			sys: host(func(s *System) {
				s.MemoryPlace = placed(memory.Place{Mounted: true, Tmpfs: true, Size: 3 << 30})
			}), check: "guest_memory", status: Warn,
			message: "has a size of 3072 MiB, and the host has 7812", fix: "mount -o remount,size=100% '/var/lib/hatch/memory'",
		},
		"no swap": {sys: goodHost(), check: "swap", status: Pass, message: "off"},
		"swap on a disk": {
			sys:   withFile("/proc/swaps", swaps+"/dev/sda2                               partition\t2097148\t\t0\t\t-2\n/swap\\040file file 1 0 -3\n"),
			check: "swap", status: Warn, message: `the host swaps to /dev/sda2 and /swap\040file:`, hint: "swapoff -a",
		},
		"swap in RAM": {
			sys:   withFile("/proc/swaps", swaps+"/dev/zram0                              partition\t2097148\t\t0\t\t100\n"),
			check: "swap", status: Pass, message: "/dev/zram0, which is encrypted or in RAM",
		},
		"encrypted swap": {
			sys: host(func(s *System) {
				s.ReadFile = func(path string) ([]byte, error) {
					return []byte(map[string]string{"/proc/swaps": swaps + "/dev/dm-3 partition 1 0 -2\n", "/sys/class/block/dm-3/dm/uuid": "CRYPT-PLAIN-swap\n"}[path]), nil
				}
			}), check: "swap", status: Pass, message: "/dev/dm-3, which is encrypted",
		},
		"swap on LVM": {
			sys: host(func(s *System) {
				s.ReadFile = func(path string) ([]byte, error) {
					return []byte(map[string]string{"/proc/swaps": swaps + "/dev/dm-3 partition 1 0 -2\n", "/sys/class/block/dm-3/dm/uuid": "LVM-swap\n"}[path]), nil
				}
			}), check: "swap", status: Warn, message: "/dev/dm-3", hint: "encrypt",
		},
		"space for some VMs to sleep": {
			sys:   host(func(s *System) { s.FreeMiB = func(string) (int64, error) { return 1000, nil } }),
			check: "sleep", status: Warn, message: "not all VMs can be put to sleep: 512 MiB of their memory are in use, and /var/lib/hatch has room for 488 beside the 512", hint: "HATCH_DATA_DIR",
		},
		"space for no VM to sleep": {
			sys:   host(func(s *System) { s.FreeMiB = func(string) (int64, error) { return 512, nil } }),
			check: "sleep", status: Warn, message: "no VM can be put to sleep: 512 MiB are free", hint: "delete",
		},
		"a data directory that others can write to": {
			sys: host(func(s *System) {
				s.Owned = func(dir string, _ bool) error { return errors.New("others write to " + dir) }
			}),
			check: "data_dir", status: Fail, message: "others write to /var/lib/hatch", hint: "does not start",
		},
		"a data directory that cannot be read": {
			sys:   host(func(s *System) { s.Owned = func(string, bool) error { return &fs.PathError{Err: syscall.EACCES} } }),
			check: "data_dir", status: Warn, message: "/var/lib/hatch", hint: "as root",
		},
		"no data directory yet": {
			sys: host(func(s *System) {
				s.Stat, s.Owned = gone("/var/lib/hatch"), func(string, bool) error { return syscall.ENOENT }
			}),
			check: "data_dir", status: Pass, message: "does not exist yet",
		},
		"a full disk": {
			sys:   host(func(s *System) { s.FreeMiB = func(string) (int64, error) { return 100, nil } }),
			check: "disk", status: Fail, message: "100 MiB are free for /var/lib/hatch", hint: "HATCH_DATA_DIR",
		},
		"no agent": {
			sys: host(func(s *System) { s.Stat = gone("/usr/bin/hatch-agent") }), check: "agent", status: Fail, message: "/usr/bin/hatch-agent", hint: "make build",
		},
		"no build tools": {
			sys: host(func(s *System) { s.LookPath = without("mmdebstrap", "mke2fs") }), check: "build_tools", status: Warn,
			message: "mmdebstrap and mke2fs", fix: "mmdebstrap e2fsprogs",
		},
		"no Debian mirror": {
			sys: host(func(s *System) {
				s.Stat = gone("/var/lib/hatch/images")
				s.DebianMirror = func([]string) error {
					return errs.New(errs.Unsupported, "no_package_sources", "no Debian mirror").WithHint("set HATCH_DEBIAN_MIRROR")
				}
			}), check: "build_tools", status: Fail, message: "no Debian mirror", hint: "HATCH_DEBIAN_MIRROR",
		},
		"no Debian mirror, but an image": {
			sys: host(func(s *System) {
				s.DebianMirror = func([]string) error {
					return errs.New(errs.Unsupported, "no_package_sources", "no Debian mirror").WithHint("set HATCH_DEBIAN_MIRROR")
				}
			}), check: "build_tools", status: Warn, message: "no Debian mirror", hint: "HATCH_DEBIAN_MIRROR",
		},
		"no keys of Debian": {
			sys: host(func(s *System) {
				s.Stat = gone("/var/lib/hatch/images")
				s.DebianMirror = func([]string) error { return errs.New(errs.Unsupported, recipe.KeyringMissing, "no keys") }
			}), check: "build_tools", status: Fail, message: "no keys", fix: "install -y --no-install-recommends debian-archive-keyring",
		},
		"no image": {
			sys: host(func(s *System) { s.Stat = gone("/var/lib/hatch/images") }), check: "image", status: Warn, message: "not built", fix: "hatch image build",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := find(t, Run(t.Context(), tc.sys, settings()), tc.check)
			if got.Status != tc.status || !strings.Contains(got.Message, tc.message) {
				t.Errorf("got %+v", got)
			}
			if tc.fix == "" != (got.Fix == "") || !strings.Contains(got.Fix, tc.fix) || !strings.Contains(got.Hint, tc.hint) {
				t.Errorf("got fix %q, hint %q", got.Fix, got.Hint)
			}
		})
	}
}

// unitCgroup is the cgroup of the unit for VMs.
const unitCgroup = "/system.slice/hatch-vms.service"

func TestVMsCgroupsOfAUnit(t *testing.T) {
	const dir = "/sys/fs/cgroup" + unitCgroup
	for name, tc := range map[string]struct {
		sys     System
		status  Status
		message string
	}{
		"started":            {goodHost(), Pass, "VMs' cgroups are in " + dir + "; limits can be set"},
		"not started":        {host(func(s *System) { s.Stat = gone(dir) }), Warn, dir + ", for VMs' cgroups, does not exist: hatchd uses /sys/fs/cgroup/hatch,"},
		"without delegation": {withFile(dir+"/cgroup.controllers", "memory pids\n"), Warn, dir + " does not have the controllers cpu;"},
		"read-only": {host(func(s *System) {
			s.Writable = func(path string) error {
				if path == dir {
					return syscall.EROFS
				}
				return nil
			}
		}), Warn, dir + " cannot be written"},
		"not started, v1": {
			host(func(s *System) {
				s.Stat = gone("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/memory/system.slice/hatch-vms.service")
			}), Warn, "/sys/fs/cgroup/memory" + unitCgroup + ", for VMs' cgroups, does not exist",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := settings()
			s.Cgroup = unitCgroup
			got := find(t, Run(t.Context(), tc.sys, s), "cgroups")
			if got.Status != tc.status || !strings.Contains(got.Message, tc.message) || (got.Hint == "") != (tc.status == Pass) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestFailedChecksSayWhatToDo(t *testing.T) {
	nothing := System{
		ReadFile:     func(string) ([]byte, error) { return nil, nil },
		Stat:         gone("/"),
		Writable:     func(string) error { return syscall.EROFS },
		OpenDevice:   func(string) error { return syscall.EPERM },
		LookPath:     func(string) (string, error) { return "", exec.ErrNotFound },
		Command:      func(context.Context, string, ...string) (string, error) { return "", exec.ErrNotFound },
		ProbeKVM:     func() kvm.Result { return kvm.Result{Why: "none"} },
		Listen:       func(context.Context, string) error { return syscall.EADDRINUSE },
		LookupHost:   func(context.Context, string) ([]string, error) { return nil, errors.New("no DNS") },
		Answers:      func(context.Context, string) ([]string, bool) { return nil, false },
		CreateLinks:  func() error { return syscall.EPERM },
		Chains:       func() ([]Chain, error) { return nil, syscall.EPERM },
		Owned:        func(string, bool) error { return syscall.EPERM },
		FreeMiB:      func(string) (int64, error) { return 0, nil },
		Reflink:      func(string) (bool, error) { return false, nil },
		MemoryPlace:  placed(memory.Place{}),
		MountMemory:  func(string) error { return syscall.EPERM },
		DebianMirror: func([]string) error { return syscall.EACCES },
	}
	checks := Run(t.Context(), nothing, settings())
	if Healthy(checks) {
		t.Error("a host with nothing is healthy")
	}
	for _, c := range checks {
		if c.Status == Fail && c.Fix == "" && c.Hint == "" {
			t.Errorf("%s fails and does not say what to do: %s", c.Name, c.Message)
		}
	}
}

func TestHatchdsListenerIsNoConflict(t *testing.T) {
	for status, ills := range map[Status][]string{Pass: nil, Fail: {"disk: it is full"}} {
		sys := host(func(s *System) {
			s.Listen = func(context.Context, string) error { return syscall.EADDRINUSE }
			s.Answers = func(_ context.Context, addr string) ([]string, bool) { return ills, addr == "http://127.0.0.1:8080" }
		})
		if c := find(t, Run(t.Context(), sys, settings()), "http_port"); c.Status != status || !strings.Contains(c.Message, strings.Join(ills, "")) {
			t.Errorf("with %q got %+v", ills, c)
		}
	}
}

func TestAFirewallWithARuleForTheBridgeIsNoConflict(t *testing.T) {
	for name, chain := range map[string]Chain{
		"a rule for the bridge": {Family: "ip", Table: "filter", Name: "FORWARD", Drops: true, Admits: []string{"docker0", "hatch0"}},
		"our own":               {Family: "inet", Table: "hatch", Name: "forward", Drops: true},
		"accepts":               {Family: "ip", Table: "filter", Name: "FORWARD"},
	} {
		sys := host(func(s *System) { s.Chains = func() ([]Chain, error) { return []Chain{chain}, nil } })
		if c := find(t, Run(t.Context(), sys, settings()), "firewall"); c.Status != Pass {
			t.Errorf("%s: got %+v", name, c)
		}
	}
}

func TestTheDiskIsThatOfTheNearestDirectory(t *testing.T) {
	var asked string
	sys := host(func(s *System) {
		s.Stat = gone("/var/lib/hatch")
		s.FreeMiB = func(dir string) (int64, error) { asked = dir; return 50 << 10, nil }
	})
	Run(t.Context(), sys, settings())
	if asked != "/var/lib" {
		t.Errorf("asked for %q", asked)
	}
}

func TestFix(t *testing.T) {
	var ran []string
	failing := error(nil)
	sys := System{Command: func(_ context.Context, program string, args ...string) (string, error) {
		ran = append([]string{program}, args...)
		return "no such module\n", failing
	}}
	broken := fail("tun", "gone").fix("modprobe tun")
	if err := Fix(t.Context(), sys, broken); err != nil || strings.Join(ran, " ") != "sh -c modprobe tun" {
		t.Errorf("ran %q: %v", ran, err)
	}
	failing = errors.New("exit status 1")
	if err := Fix(t.Context(), sys, broken); err == nil || !strings.Contains(err.Error(), "no such module") {
		t.Errorf("got %v", err)
	}
	ran = nil
	for _, c := range []Check{pass("a", "fine"), fail("b", "bad").hint("do it")} {
		if err := Fix(t.Context(), sys, c); err != nil || ran != nil {
			t.Errorf("%s: ran %q: %v", c.Name, ran, err)
		}
	}
}

func TestReflinkLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := canReflink(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v: %v", left, err)
	}
}

func TestListen(t *testing.T) {
	if err := canListen(t.Context(), "127.0.0.1:0"); err != nil {
		t.Errorf("port 0: %v", err)
	}
	if err := canListen(t.Context(), "192.0.2.1:1"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("an address that is not ours: %v", err)
	}
}

func TestHatchdIsAskedThroughItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status":"ok","parts":[{"name":"database","status":"ok"}]}`)
	}))
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	defer server.Close()
	sys := host(func(s *System) {
		s.Listen = func(context.Context, string) error { return syscall.EADDRINUSE }
		s.Answers = hatchdAnswers
	})
	with := settings()
	with.HTTPTLS, with.Sockets = true, []string{path + ".none", path}
	if c := find(t, Run(t.Context(), sys, with), "http_port"); c.Status != Pass {
		t.Errorf("got %+v", c)
	}
	with.Sockets = nil
	if c := find(t, Run(t.Context(), sys, with), "http_port"); c.Status != Fail {
		t.Errorf("without a socket: %+v", c)
	}
}

func TestTheAPINeedsTLSBeyondThisHost(t *testing.T) {
	for name, c := range map[string]struct {
		exposes, tls bool
		want         Status
	}{"loopback": {false, false, Pass}, "TLS": {false, true, Pass}, "plain": {true, false, Warn}} {
		with := settings()
		with.ExposesHTTP, with.HTTPTLS = c.exposes, c.tls
		if got := find(t, Run(t.Context(), goodHost(), with), "api_tls"); got.Status != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestHatchdAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		body string
		ills string
		want bool
	}{
		"well":           {`{"status":"ok","version":"v1","parts":[{"name":"database","status":"ok"}]}`, "", true},
		"without image":  {`{"status":"degraded","parts":[{"name":"image","status":"degraded"}]}`, "", true},
		"a full disk":    {`{"status":"degraded","parts":[{"name":"disk","status":"degraded","message":"it is full"}]}`, "disk: it is full", true},
		"something else": {`{"status":"UP"}`, "", false},
		"not JSON":       {`<html>`, "", false},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tc.body) }))
		if ills, got := hatchdAnswers(t.Context(), server.URL); got != tc.want || strings.Join(ills, " ") != tc.ills {
			t.Errorf("%s: %q, %v", name, ills, got)
		}
		server.Close()
	}
	if _, ok := hatchdAnswers(t.Context(), "http://127.0.0.1:1"); ok {
		t.Error("a closed port is a hatchd")
	}
}

func find(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no check %q", name)
	return Check{}
}
