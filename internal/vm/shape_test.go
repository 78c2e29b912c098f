package vm_test

import (
	"testing"

	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// A guest becomes another VM only where both have booted with the same.
func TestKeyIsOfTheShapeAlone(t *testing.T) {
	origin := snapshot.Origin{
		InstanceID: "vm_a", Initramfs: "a.cpio",
		Spec: machine.Spec{
			ImageID: "img_a", TemplateID: "tpl_a", Hostname: "web", Boot: image.Boot{Kernel: image.File{Digest: "sha256:k"}, Rootfs: image.File{Digest: "sha256:r"}},
			VCPUs: 2, MemMiB: 512, DiskMiB: 1024, BootArgs: "quiet", EnableNetwork: true,
		},
	}
	here := snapshot.Machine{Driver: "qemu", Version: "9", Accel: "kvm", CPU: "x"}
	key := func(change func(*snapshot.Snapshot)) string {
		snap := snapshot.Snapshot{VM: origin, Machine: here}
		change(&snap)
		return vm.ShapeOf(snap).Key()
	}
	same := key(func(*snapshot.Snapshot) {})
	if want := `img_a sha256:k sha256:r a.cpio 2 512 1024 "quiet" true {Driver:qemu Version:9 Accel:kvm CPU:x}`; same != want {
		t.Errorf("the key is %s, want %s", same, want)
	}
	for what, change := range map[string]func(*snapshot.Snapshot){
		"hostname":    func(s *snapshot.Snapshot) { s.VM.Hostname = "db" },
		"template":    func(s *snapshot.Snapshot) { s.VM.TemplateID = "" },
		"user data":   func(s *snapshot.Snapshot) { s.VM.UserData = "#!" },
		"keys":        func(s *snapshot.Snapshot) { s.VM.SSHKeys = []string{"k"} },
		"labels":      func(s *snapshot.Snapshot) { s.VM.Labels = map[string]string{"a": "b"} },
		"rate limits": func(s *snapshot.Snapshot) { s.VM.RateLimits.Disk = vmm.DiskLimit{OpsPerSecond: 10} },
	} {
		if key(change) != same {
			t.Errorf("%s changes the key", what)
		}
	}
	for what, change := range map[string]func(*snapshot.Snapshot){
		"image":     func(s *snapshot.Snapshot) { s.VM.ImageID = "img_b" },
		"kernel":    func(s *snapshot.Snapshot) { s.VM.Boot.Kernel.Digest = "" },
		"root":      func(s *snapshot.Snapshot) { s.VM.Boot.Rootfs.Digest = "" },
		"initramfs": func(s *snapshot.Snapshot) { s.VM.Initramfs = "" },
		"CPUs":      func(s *snapshot.Snapshot) { s.VM.VCPUs++ },
		"memory":    func(s *snapshot.Snapshot) { s.VM.MemMiB++ },
		"disk":      func(s *snapshot.Snapshot) { s.VM.DiskMiB++ },
		"boot args": func(s *snapshot.Snapshot) { s.VM.BootArgs = "" },
		"network":   func(s *snapshot.Snapshot) { s.VM.EnableNetwork = false },
		"driver":    func(s *snapshot.Snapshot) { s.Machine.Driver = "firecracker" },
	} {
		if key(change) == same {
			t.Errorf("%s does not change the key", what)
		}
	}
}
