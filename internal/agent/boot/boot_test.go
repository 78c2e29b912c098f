package boot

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/agent/drives"
)

func TestParams(t *testing.T) {
	p, err := parseParams("console=ttyS0 quiet hatch.mode=overlay hatch.rootfs=ext4 hatch.hostname=web-1 " +
		"hatch.ip=172.16.0.10/24 hatch.gw=172.16.0.1 hatch.dns=172.16.0.1,172.16.0.2 hatch.mac=02:fc:00:00:00:0a\n")
	if err != nil {
		t.Fatal(err)
	}
	if p.mode != overlay || p.format != "ext4" || p.hostname != "web-1" || p.init != "" {
		t.Errorf("got %+v", p)
	}
	n := p.nic
	if n.MAC.String() != "02:fc:00:00:00:0a" || n.Address != netip.MustParsePrefix("172.16.0.10/24") ||
		n.Gateway != netip.MustParseAddr("172.16.0.1") || len(n.dns) != 2 {
		t.Errorf("got %+v", n)
	}
	if p, err := parseParams("hatch.mode=copy hatch.init=/bin/sh"); err != nil || p.nic != nil || p.init != "/bin/sh" {
		t.Errorf("without a network: %+v, %v", p, err)
	}
}

func TestErrorsNameTheParam(t *testing.T) {
	for cmdline, named := range map[string]string{
		"": "hatch.mode",
		"hatch.mode=copy hatch.mac=x hatch.ip=10.0.0.1/8":                                 "hatch.mac",
		"hatch.mode=copy hatch.mac=02:fc:00:00:00:0a":                                     "hatch.ip",
		"hatch.mode=copy hatch.mac=02:fc:00:00:00:0a hatch.ip=10.0.0.1/8 hatch.gw=gate":   "hatch.gw",
		"hatch.mode=copy hatch.mac=02:fc:00:00:00:0a hatch.ip=10.0.0.1/8 hatch.dns=1.1.1": "hatch.dns",
	} {
		if _, err := parseParams(cmdline); err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%q: %v, want an error that names %s", cmdline, err, named)
		}
	}
}

func FuzzParams(f *testing.F) {
	f.Add("hatch.mode=overlay hatch.mac=02:fc:00:00:00:0a hatch.ip=10.0.0.1/8 hatch.dns=,,1.1.1.1")
	f.Fuzz(func(t *testing.T, cmdline string) {
		p, err := parseParams(cmdline)
		if err == nil && p.nic != nil && !p.nic.Address.IsValid() {
			t.Error("a NIC without an address")
		}
	})
}

// tree makes a root from files; a text that begins with "-> " is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	for path, text := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := error(nil)
		if target, link := strings.CutPrefix(text, "-> "); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestMissingFilesAreWritten(t *testing.T) {
	p := params{hostname: "web-1", nic: &network{dns: []netip.Addr{netip.MustParseAddr("172.16.0.1")}}}
	for name, c := range map[string]struct {
		files              map[string]string
		resolver, hostname string // wanted; "" for no such file
	}{
		"no files":          {map[string]string{"x": ""}, "nameserver 172.16.0.1\n", "web-1\n"},
		"an empty resolver": {map[string]string{"etc/resolv.conf": "# none\n"}, "nameserver 172.16.0.1\n", "web-1\n"},
		"a resolver":        {map[string]string{"etc/resolv.conf": "nameserver 192.0.2.1\n"}, "nameserver 192.0.2.1\n", "web-1\n"},
		"systemd's link":    {map[string]string{"etc/resolv.conf": "-> ../run/systemd/resolve/stub-resolv.conf"}, "", "web-1\n"},
		"cloud-init":        {map[string]string{"usr/bin/cloud-init": "", "etc/hostname": "image\n"}, "nameserver 172.16.0.1\n", "image\n"},
	} {
		root := tree(t, c.files)
		if err := writeFiles(root, p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for path, want := range map[string]string{"etc/resolv.conf": c.resolver, "etc/hostname": c.hostname} {
			if got, _ := os.ReadFile(filepath.Join(root, path)); string(got) != want {
				t.Errorf("%s: %s says %q, want %q", name, path, got, want)
			}
		}
	}
}

func TestLinksOutOfTheRootAreNotFollowed(t *testing.T) {
	p := params{hostname: "web-1", nic: &network{dns: []netip.Addr{netip.MustParseAddr("172.16.0.1")}}}
	root := tree(t, map[string]string{"etc/hostname": "-> ../../outside", "etc/resolv.conf": "-> /etc/../../outside"})
	if err := writeFiles(root, p); err != nil {
		t.Error(err)
	}
	root2 := tree(t, map[string]string{"etc": "-> .."})
	if err := writeFiles(root2, p); err == nil {
		t.Error("an etc outside the root was written to")
	}
	for _, path := range []string{filepath.Join(root, "../outside"), filepath.Join(root2, "../hostname")} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was created", path)
		}
	}
}

func TestCommandIsLinked(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string // target of the link; "" for none
		fails bool
	}{
		"no such directory":       {map[string]string{"x": ""}, "/run/hatch/hatch-agent", false},
		"linked before":           {map[string]string{commandLink: "-> /run/hatch/hatch-agent"}, "/run/hatch/hatch-agent", false},
		"a program of the image":  {map[string]string{commandLink: "#!"}, "", false},
		"a directory that is not": {map[string]string{"usr/local": "-> ../.."}, "", true},
	} {
		dir := tree(t, c.files)
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := linkCommand(root); (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
		if err := root.Close(); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.Readlink(filepath.Join(dir, commandLink)); got != c.want {
			t.Errorf("%s: a link to %q, want %q", name, got, c.want)
		}
		if _, err := os.Lstat(filepath.Join(dir, "../bin")); err == nil {
			t.Errorf("%s: something was made outside of the root", name)
		}
	}
}

func TestDisksAreFoundBySerial(t *testing.T) {
	root := tree(t, map[string]string{
		"block/vda/serial": "hatch-disk", "block/vdb/serial": "hatch-root\n", "block/vdc/serial": "hatch-seed", "block/loop0/size": "0",
	})
	d := scanDisks(root, "/dev", nil)
	if d != (disks{base: "/dev/vdb", own: "/dev/vda"}) {
		t.Errorf("got %+v", d)
	}
	if got := (disks{own: "/dev/vda"}).missing(overlay); got != drives.Base {
		t.Errorf("missing %q", got)
	}
	if got := (disks{own: "/dev/vda"}).missing(ownCopy); got != "" {
		t.Errorf("missing %q", got)
	}
}

// Firecracker makes up the serials of its disks, so that only the order identifies them.
func TestDisksAreFoundByOrder(t *testing.T) {
	root := tree(t, map[string]string{
		"block/vda/serial": "654321", "block/vdb/serial": "654322\n", "block/vdc/serial": "", "block/sda/serial": "other",
	})
	p, err := parseParams("quiet hatch.mode=overlay hatch.disks=hatch-disk,hatch-seed,hatch-root")
	if err != nil {
		t.Fatal(err)
	}
	if d := scanDisks(root, "/dev", p.disks); d.own != "/dev/vda" {
		t.Errorf("got %+v", d)
	}
}

func TestMountPointMustBeADirectory(t *testing.T) {
	dir := tree(t, map[string]string{"dev": "-> /etc", "proc": "a file", "sys/x": ""})
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	for name, ok := range map[string]bool{"dev": false, "proc": false, "sys": true, "run": true} {
		if err := mountPoint(root, name); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
