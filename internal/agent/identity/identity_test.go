package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

const oldID = "0123456789abcdef0123456789abcdef"

// original is a guest without a network whose root is a directory of the test, and
// whose kernel is a fake.
type original struct {
	*Guest
	name      string
	dropped   []string // devices
	unmounted []string
	hungUp    []int
	reopen    func() // what sshd does on SIGHUP
}

// newOriginal creates the files. A name that ends in "*" is a program, a text that
// begins with "-> " a link.
func newOriginal(t *testing.T, files map[string]string) *original {
	t.Helper()
	o := &original{name: "web-1", reopen: func() {}}
	o.Guest = &Guest{root: t.TempDir(), log: slog.New(slog.DiscardHandler), kernel: kernel{
		hostname:    func() (string, error) { return o.name, nil },
		setHostname: func(name string) error { o.name = name; return nil },
		dropCache:   func(device string) error { o.dropped = append(o.dropped, device); return nil },
		unmount:     func(path string) error { o.unmounted = append(o.unmounted, path); return nil },
		hangUp:      func(pid int) error { o.hungUp = append(o.hungUp, pid); o.reopen(); return nil },
	}}
	for name, text := range map[string]string{"proc/cmdline": "quiet\n", "proc/mounts": ""} {
		o.write(t, name, text)
	}
	for name, text := range files {
		o.write(t, name, text)
	}
	return o
}

func (o *original) write(t *testing.T, name, text string) {
	t.Helper()
	name, program := strings.CutSuffix(name, "*")
	path := o.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	mode := os.FileMode(0o644)
	if program {
		mode = 0o755
	}
	var err error
	if target, link := strings.CutPrefix(text, "-> "); link {
		err = os.Symlink(target, path)
	} else {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (o *original) read(name string) string {
	text, err := os.ReadFile(o.path(name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (o *original) reidentify(t *testing.T, as wire.Identity) wire.Self {
	t.Helper()
	self, err := o.Reidentify(t.Context(), as)
	if err != nil {
		t.Fatal(err)
	}
	return self
}

var cloneIdentity = wire.Identity{InstanceID: "vm_clone", Hostname: "clone-2"}

func TestNames(t *testing.T) {
	o := newOriginal(t, map[string]string{
		"etc/hostname":   "web-1\n",
		"etc/hosts":      "127.0.0.1 localhost # web-1 is us\n127.0.1.1\tweb-1.example web-1\n10.0.0.9 web-10 myweb-1\n",
		"etc/machine-id": oldID + "\n", "var/lib/dbus/machine-id": oldID + "\n",
		"var/lib/systemd/random-seed": "seed", "run/log/journal/" + oldID + "/system.journal": "logged",
	})
	self := o.reidentify(t, cloneIdentity)
	if self.Hostname != "clone-2" || o.read("etc/hostname") != "clone-2\n" {
		t.Errorf("it is called %q, and %q in its file", self.Hostname, o.read("etc/hostname"))
	}
	want := "127.0.0.1 localhost # web-1 is us\n127.0.1.1\tclone-2.example clone-2\n10.0.0.9 web-10 myweb-1\n"
	if got := o.read("etc/hosts"); got != want {
		t.Errorf("/etc/hosts is %q", got)
	}
	if !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`).MatchString(self.MachineID) || self.MachineID == oldID {
		t.Errorf("the machine id is %q", self.MachineID)
	}
	for _, path := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		if got := o.read(path); got != self.MachineID+"\n" {
			t.Errorf("%s is %q, reported was %q", path, got, self.MachineID)
		}
	}
	if got := o.read("run/log/journal/" + self.MachineID + "/system.journal"); got != "logged" {
		t.Errorf("the journal is %q", got)
	}
	if _, err := os.Stat(o.path("var/lib/systemd/random-seed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stored seed: %v", err)
	}
}

// TestImageWithoutFiles has none of the files and programs that a clone changes.
func TestImageWithoutFiles(t *testing.T) {
	o := newOriginal(t, map[string]string{"bin/busybox*": ""})
	self := o.reidentify(t, wire.Identity{InstanceID: "vm_clone", Hostname: "clone-2", CloudInit: true})
	if self != (wire.Self{Hostname: "clone-2"}) || o.name != "clone-2" {
		t.Errorf("it is %+v, called %q", self, o.name)
	}
	for _, path := range []string{"etc", "run", "var"} {
		if _, err := os.Stat(o.path(path)); err == nil {
			t.Errorf("/%s was created", path)
		}
	}
}

func TestOtherFilesAreNotChanged(t *testing.T) {
	o := newOriginal(t, map[string]string{
		"etc/hostname": "-> ../elsewhere", "elsewhere": "web-1\n", "etc/machine-id": "uninitialized\n",
		"var/lib/dbus/machine-id": "-> /etc/machine-id",
	})
	if self := o.reidentify(t, cloneIdentity); self.MachineID != "" || o.read("etc/machine-id") != "uninitialized\n" || o.read("elsewhere") != "web-1\n" {
		t.Errorf("it is %+v; %q, %q", self, o.read("etc/machine-id"), o.read("elsewhere"))
	}
}

func TestMACInTheFilesOfNetworkServices(t *testing.T) {
	o := newOriginal(t, map[string]string{
		"etc/systemd/network/10-cloud-init-eth0.network":                     "[Match]\nMACAddress=02:fc:00:00:00:0a\nName=eth0\n",
		"etc/netplan/50-cloud-init.yaml":                                     "macaddress: '02:FC:00:00:00:0A'\n",
		"etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection": "mac-address=02:FC:00:00:00:0A\n",
		"etc/systemd/network/20-other.network":                               "MACAddress=02:fc:00:00:00:0c\n",
		"etc/other":                                                          "02:fc:00:00:00:0a",
	})
	if err := o.replaceMAC(net.HardwareAddr{2, 0xfc, 0, 0, 0, 10}, net.HardwareAddr{2, 0xfc, 0, 0, 0, 11}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"etc/systemd/network/10-cloud-init-eth0.network":                     "[Match]\nMACAddress=02:fc:00:00:00:0b\nName=eth0\n",
		"etc/netplan/50-cloud-init.yaml":                                     "macaddress: '02:FC:00:00:00:0B'\n",
		"etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection": "mac-address=02:FC:00:00:00:0B\n",
		"etc/systemd/network/20-other.network":                               "MACAddress=02:fc:00:00:00:0c\n",
		"etc/other":                                                          "02:fc:00:00:00:0a",
	} {
		if got := o.read(path); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestTheOriginalsCertificatesAreRefused(t *testing.T) {
	const keys = "run/hatch/ssh/authorized_keys"
	o := newOriginal(t, map[string]string{keys: "of the original"})
	as := cloneIdentity
	as.SSH = &wire.SSHTrust{Authority: "ssh-ed25519 AAAA", Principal: "vm_clone"}
	o.reidentify(t, as)
	if got := o.read(keys); got != `cert-authority,principals="vm_clone" ssh-ed25519 AAAA`+"\n" {
		t.Errorf("it trusts %q", got)
	}
	o.reidentify(t, cloneIdentity) // of a hatchd that sends no trust
	if _, err := os.Stat(o.path(keys)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it trusts still: %v", err)
	}
}

// keygen is an ssh-keygen that makes files of the kind's name.
const keygen = "#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in -t) kind=$2;; -f) file=$2;; esac; shift; done\n" +
	"[ $kind != broken ] || { echo 'no such kind'; exit 255; }\necho new $kind > $file; echo new $kind > $file.pub\n"

func withKeys(kinds ...string) map[string]string {
	files := map[string]string{"usr/bin/ssh-keygen*": keygen, "etc/ssh/sshd_config": "", "etc/ssh/ssh_host_rsa_key.pub": "of the image"}
	for _, kind := range kinds {
		files["etc/ssh/ssh_host_"+kind+"_key"] = "old " + kind
		files["etc/ssh/ssh_host_"+kind+"_key.pub"] = "old " + kind
	}
	return files
}

func TestHostKeysAreReplaced(t *testing.T) {
	files := withKeys("ed25519", "ecdsa", "dsa")
	files["proc/7/comm"], files["proc/7/cmdline"] = "sshd\n", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups\x00"
	files["proc/7/fd/3"] = "-> socket:[10]"
	files["proc/8/comm"], files["proc/8/cmdline"] = "sshd\n", "sshd: debian [priv]\x00"
	files["proc/9/comm"], files["proc/9/cmdline"] = "cat\n", "cat [listener]\x00"
	o := newOriginal(t, files)
	o.reopen = func() {
		_ = os.Remove(o.path("proc/7/fd/3"))
		o.write(t, "proc/7/fd/3", "-> socket:[11]")
	}
	o.reidentify(t, cloneIdentity)
	for _, kind := range []string{"ed25519", "ecdsa"} {
		for _, suffix := range []string{"", ".pub"} {
			if got := o.read("etc/ssh/ssh_host_" + kind + "_key" + suffix); got != "new "+kind+"\n" {
				t.Errorf("%s%s is %q", kind, suffix, got)
			}
		}
	}
	entries, err := os.ReadDir(o.path("etc/ssh"))
	if err != nil || len(entries) != 6 { // two keys, rsa.pub and sshd_config
		t.Errorf("there are %v, %v", entries, err)
	}
	if !slices.Equal(o.hungUp, []int{7}) {
		t.Errorf("SIGHUP was sent to %v", o.hungUp)
	}
}

func TestHostKeysThatCannotBeReplaced(t *testing.T) {
	o := newOriginal(t, withKeys("ed25519"))
	o.write(t, "usr/local/bin/ssh-keygen*", "#!/bin/sh\necho the disk is full; exit 1\n")
	_, err := o.Reidentify(t.Context(), cloneIdentity)
	if err == nil || !strings.Contains(err.Error(), "the SSH host keys: ssh-keygen -q -t ed25519") || !strings.HasSuffix(err.Error(), "the disk is full") {
		t.Errorf("got %v", err)
	}
	if got := o.read("etc/ssh/ssh_host_ed25519_key"); got != "old ed25519" {
		t.Errorf("the key is %q", got)
	}
	for _, path := range []string{"usr/local/bin/ssh-keygen", "usr/bin/ssh-keygen"} {
		if err := os.Remove(o.path(path)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.Reidentify(t.Context(), cloneIdentity); err == nil || !strings.Contains(err.Error(), "no ssh-keygen") {
		t.Errorf("without ssh-keygen: %v", err)
	}
}

func TestEndOfSSHDIsReported(t *testing.T) {
	files := withKeys("ed25519")
	files["proc/7/comm"], files["proc/7/cmdline"] = "sshd\n", "sshd: [listener]"
	o := newOriginal(t, files)
	o.reopen = func() { _ = os.RemoveAll(o.path("proc/7")) }
	if _, err := o.Reidentify(t.Context(), cloneIdentity); err == nil || !strings.Contains(err.Error(), "sshd ended") {
		t.Errorf("got %v", err)
	}
}

// provisioned returns a guest whose cloud-init has finished.
func provisioned(t *testing.T) *original {
	t.Helper()
	return newOriginal(t, map[string]string{
		"usr/bin/cloud-init*":                       "#!/bin/sh\n",
		"var/lib/cloud/data/instance-id":            "vm_web\n",
		"var/lib/cloud/instances/vm_web/sem/runcmd": "done",
		"var/lib/cloud/instance":                    "-> /var/lib/cloud/instances/vm_web",
		"run/cloud-init/.instance-id":               "vm_web\n",
		"run/cloud-init/status.json":                "{}",
		"var/lib/cloud/data/result.json":            `{"v1":{"errors":[]}}`,
		"run/cloud-init/result.json":                "-> ../../var/lib/cloud/data/result.json",
		"run/cloud-init/cloud.cfg":                  "datasource_list: [ NoCloud, None ]",
		"sys/block/vda/serial":                      "hatch-root", "sys/block/vdb/serial": "hatch-seed\n",
		"proc/mounts": "overlay / overlay rw 0 0\n/dev/vdb /mnt/the\\040seed iso9660 ro 0 0\n/dev/vdb /srv iso9660 ro 0 0\n",
	})
}

func TestInstanceIsRenamed(t *testing.T) {
	o := provisioned(t)
	o.reidentify(t, cloneIdentity)
	o.reidentify(t, cloneIdentity) // the second time changes nothing
	if got := o.read("var/lib/cloud/data/instance-id") + o.read("run/cloud-init/.instance-id"); got != "vm_clone\nvm_clone\n" {
		t.Errorf("the instance is %q", got)
	}
	if got := o.read("var/lib/cloud/instances/vm_clone/sem/runcmd"); got != "done" {
		t.Errorf("the record of runcmd is %q", got)
	}
	if got, err := os.Readlink(o.path("var/lib/cloud/instance")); got != "/var/lib/cloud/instances/vm_clone" {
		t.Errorf("the link points to %q, %v", got, err)
	}
	if _, err := os.Stat(o.path("var/lib/cloud/instances/vm_web")); err == nil {
		t.Error("the original's instance was not renamed")
	}
	if got := o.read("run/cloud-init/result.json"); !strings.Contains(got, "errors") {
		t.Errorf("cloud-init's result is %q", got)
	}
	if !slices.Equal(o.unmounted[:2], []string{o.path("srv"), o.path("mnt/the seed")}) || o.dropped[0] != o.path("dev/vdb") {
		t.Errorf("unmounted %v, dropped %v", o.unmounted, o.dropped)
	}
}

func TestCloudInitIsPrepared(t *testing.T) {
	o := provisioned(t)
	as := cloneIdentity
	as.CloudInit = true
	o.reidentify(t, as)
	o.reidentify(t, as)
	for _, path := range []string{"result.json", "status.json", ".instance-id"} {
		if _, err := os.Lstat(o.path("run/cloud-init", path)); err == nil {
			t.Errorf("%s was not removed", path)
		}
	}
	if got := o.read("run/cloud-init/cloud.cfg"); got != "datasource_list: [ NoCloud, None ]\nssh_deletekeys: false\n" {
		t.Errorf("its configuration is %q", got)
	}
	if got := o.read("var/lib/cloud/data/instance-id"); got != "vm_web\n" {
		t.Errorf("the instance is %q, before cloud-init has run", got)
	}
	if len(o.dropped) != 2 {
		t.Errorf("dropped %v", o.dropped)
	}
}

func TestInstanceGetsSSHKeys(t *testing.T) {
	o := provisioned(t)
	as := cloneIdentity
	as.SSHKeys = true
	o.reidentify(t, as)
	o.reidentify(t, as)
	const found = "datasource_list: [ NoCloud, None ]\n"
	if got := o.read("run/cloud-init/cloud.cfg"); got != found+keepHostKeys+onlySSHKeys {
		t.Errorf("its configuration is %q", got)
	}
	if got := o.read("var/lib/cloud/data/instance-id") + o.read("var/lib/cloud/instances/vm_clone/sem/runcmd"); got != "vm_clone\ndone" {
		t.Errorf("the instance and its record of runcmd are %q", got)
	}
	for _, path := range []string{"result.json", "status.json", ".instance-id"} {
		if _, err := os.Lstat(o.path("run/cloud-init", path)); err == nil {
			t.Errorf("%s was not removed", path)
		}
	}
	as.SSHKeys, as.CloudInit = false, true // a clone of the clone
	o.reidentify(t, as)
	if got := o.read("run/cloud-init/cloud.cfg"); got != found+keepHostKeys {
		t.Errorf("the configuration of the clone's clone is %q", got)
	}
}

// TestSeedThatIsInUse is an error only for an image with cloud-init.
func TestSeedThatIsInUse(t *testing.T) {
	o := provisioned(t)
	o.kernel.unmount = func(string) error { return errors.New("busy") }
	if _, err := o.Reidentify(t.Context(), cloneIdentity); err == nil || !strings.Contains(err.Error(), "cannot unmount the seed disk from /srv: busy") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(o.path("usr/bin/cloud-init")); err != nil {
		t.Fatal(err)
	}
	o.reidentify(t, cloneIdentity)
}

// logging is a program that logs its arguments, and more.
func logging(log, more string) string {
	return fmt.Sprintf("#!/bin/sh\necho $(basename $0) $@ >> %s\n%s\n", log, more)
}

func TestCloudInitRunsByCommands(t *testing.T) {
	o := provisioned(t)
	log := o.path("log")
	o.write(t, "usr/bin/cloud-init*", logging(log, "echo {} > "+o.path("run/cloud-init/status.json")+"; exit 1"))
	o.Finish(t.Context(), wire.Identity{CloudInit: true})
	want := "cloud-init init --local\ncloud-init init\ncloud-init modules --mode=config\ncloud-init modules --mode=final\n"
	if got := o.read("log"); got != want {
		t.Errorf("the programs run were %q", got)
	}
}

func TestCloudInitRunsBySystemd(t *testing.T) {
	o := provisioned(t)
	files := withKeys("ed25519")
	files["proc/7/comm"], files["proc/7/cmdline"] = "sshd\n", "sshd: [listener]"
	files["proc/7/fd/3"] = "-> socket:[10]"
	for _, unit := range []string{"cloud-init-local", "cloud-init", "cloud-config", "cloud-final"} {
		files["usr/lib/systemd/system/"+unit+".service"] = ""
	}
	files["run/systemd/system/x"], files["etc/machine-id"] = "", oldID+"\n"
	files["usr/bin/systemctl*"] = logging(o.path("log"), "[ $1 = try-restart ] || echo of the user > "+o.path("etc/ssh/ssh_host_ed25519_key.pub"))
	for name, text := range files {
		o.write(t, name, text)
	}
	o.reopen = func() {
		_ = os.Remove(o.path("proc/7/fd/3"))
		o.write(t, "proc/7/fd/3", "-> socket:[11]")
	}
	o.Finish(t.Context(), wire.Identity{CloudInit: true})
	want := "systemctl try-restart systemd-journald.service\nsystemctl restart cloud-init-local.service cloud-init.service\nsystemctl restart cloud-config.service cloud-final.service\n"
	if got := o.read("log"); got != want {
		t.Errorf("the programs run were %q", got)
	}
	if !slices.Equal(o.hungUp, []int{7}) {
		t.Errorf("SIGHUP was sent to %v", o.hungUp)
	}
}

func TestCloudInitThatCannotStart(t *testing.T) {
	o := provisioned(t)
	if err := o.prepareCloudInit(keepHostKeys); err != nil {
		t.Fatal(err)
	}
	o.write(t, "usr/bin/cloud-init*", "#!/bin/sh\necho 'no python'; exit 127\n")
	o.Finish(t.Context(), wire.Identity{CloudInit: true})
	if got := o.read("run/cloud-init/result.json"); !strings.Contains(got, "cloud-init init --local failed: exit status 127: no python") {
		t.Errorf("its result is %q", got)
	}
}

func TestProgramsAreLimited(t *testing.T) {
	o := newOriginal(t, map[string]string{
		"bin/slow*": "#!/bin/sh\nexec sleep 60\n", "bin/loud*": "#!/bin/sh\nyes | head -c 100000; echo the end; exit 3\n",
		"bin/daemon*": "#!/bin/sh\nsleep 3 &\n",
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.run(ctx, 0, o.program("slow")); !errors.Is(err, context.Canceled) {
		t.Errorf("slow: %v", err)
	}
	err := o.run(t.Context(), 0, o.program("loud"))
	if err == nil || len(err.Error()) > 2*maxTail || !strings.HasSuffix(err.Error(), "y the end") {
		t.Errorf("loud: %v", err)
	}
	if err := o.run(t.Context(), 0, o.program("daemon")); err != nil {
		t.Errorf("daemon: %v", err)
	}
	if got := o.program("none"); got != "" {
		t.Errorf("a missing program is at %q", got)
	}
}

func FuzzRenameHost(f *testing.F) {
	f.Add([]byte("127.0.1.1\tweb-1.example web-1 # web-1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got := renameHost(text, "web-1", "web-22")
		if strings.Count(string(got), "\n") != strings.Count(string(text), "\n") {
			t.Errorf("%q has become %q", text, got)
		}
	})
}
