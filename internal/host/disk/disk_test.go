package disk

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

func newFiles(t *testing.T) *Files {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "vms")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	return New(root, filepath.Join(dir, "templates"))
}

func someVM() vm.VM {
	return vm.VM{
		ID: "vm_abc123def456",
		Spec: machine.Spec{
			Hostname: "DB-1.example.com", DiskMiB: 64, EnableNetwork: true, SSHKeys: []string{"ssh-ed25519 AAAA someone@somewhere"},
			Boot: image.Boot{DiskMode: image.DiskOverlay, Rootfs: image.File{Path: "/base"}},
		},
		Lease: network.Lease{MAC: net.HardwareAddr{2, 0xfc, 0, 0, 0, 10}},
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestProvisionMakesASparseDiskAndASeed(t *testing.T) {
	f, v := newFiles(t), someVM()
	if err := f.Provision(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(f.Dir(v.ID), diskName)
	if st, err := os.Stat(disk); err != nil || st.Size() != 64<<20 || st.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", st, err)
	}
	if got := allocated(t, disk); got > 8<<20 {
		t.Errorf("an empty disk takes %d bytes", got)
	}
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("the disk's file system is not clean: %v\n%s", err, out)
	}
	disks, err := f.Disks(v, f.Disk(v.ID))
	if err != nil || len(disks) != 3 || disks[0].Path != "/base" || !disks[0].ReadOnly || disks[1].ReadOnly || !disks[2].ReadOnly {
		t.Errorf("got %+v, %v", disks, err)
	}
	if err := f.Remove(v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Disks(v, f.Disk(v.ID)); !errs.HasCode(err, "disk_missing") {
		t.Errorf("got %v for a VM without its disk", err)
	}
}

func TestAllocatedCountsWrittenBlocks(t *testing.T) {
	f, v := newFiles(t), someVM()
	if got, err := f.Allocated(v.ID); got != 0 || err != nil {
		t.Errorf("without files: %d, %v", got, err)
	}
	if err := f.Provision(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	fresh, err := f.Allocated(v.ID)
	if err != nil || fresh <= 0 || fresh > 8<<20 {
		t.Errorf("fresh: %d, %v", fresh, err)
	}
	disk, err := os.OpenFile(filepath.Join(f.Dir(v.ID), diskName), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 4<<20)
	_, _ = rand.Read(random)
	_, err = disk.WriteAt(random, 32<<20)
	if err := errors.Join(err, disk.Sync(), disk.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Allocated(v.ID); err != nil || got < fresh+4<<20 || got > fresh+5<<20 {
		t.Errorf("after 4 MiB: %d, before %d, %v", got, fresh, err)
	}
}

func TestCopyModeMakesALargerPrivateCopy(t *testing.T) {
	f, v := newFiles(t), someVM()
	base := filepath.Join(t.TempDir(), "base")
	content := make([]byte, 3<<20)
	_, _ = rand.Read(content[1<<20 : 2<<20])
	if err := os.WriteFile(base, content, 0o600); err != nil {
		t.Fatal(err)
	}
	v.Boot = image.Boot{DiskMode: image.DiskCopy, Rootfs: image.File{Path: base, Size: int64(len(content))}}
	if err := f.Provision(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(f.Dir(v.ID), diskName))
	if err != nil || len(got) != 64<<20 || !bytes.Equal(got[:len(content)], content) {
		t.Errorf("the copy differs: %d bytes, %v", len(got), err)
	}
	if disks, err := f.Disks(v, f.Disk(v.ID)); err != nil || len(disks) != 2 {
		t.Errorf("got %+v, %v", disks, err)
	}

	small := someVM()
	small.ID, small.DiskMiB, small.Boot = "vm_small", 2, v.Boot
	if err := f.Provision(t.Context(), small); !errs.HasCode(err, "invalid_disk_mib") {
		t.Errorf("got %v for a disk smaller than its root", err)
	}
	if _, err := os.Stat(f.Dir(small.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Error("a failed provision left a directory")
	}
}

// TestSeedIsReadByAnotherTool reads the volume back with isoinfo, which shares no
// code with the writer.
func TestSeedIsReadByAnotherTool(t *testing.T) {
	f, v := newFiles(t), someVM()
	user := make([]byte, machine.MaxUserData)
	_, _ = rand.Read(user)
	v.UserData = string(user)
	if err := os.Mkdir(f.Dir(v.ID), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Seed(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	iso := filepath.Join(f.Dir(v.ID), seedName)
	if out, err := exec.Command("blkid", "-p", "-s", "LABEL", "-o", "value", iso).Output(); err != nil || strings.TrimSpace(string(out)) != "cidata" {
		t.Errorf("the volume is called %q, %v", out, err)
	}
	read := func(name string) []byte {
		out, err := exec.Command("isoinfo", "-R", "-i", iso, "-x", "/"+name).Output()
		if err != nil {
			t.Fatalf("isoinfo %s: %v", name, err)
		}
		return out
	}
	if !bytes.Equal(read("user-data"), user) {
		t.Error("user-data differs from the request's")
	}
	for says, name := range map[string]string{
		"instance-id: vm_abc123def456":                           "meta-data",
		"local-hostname: DB-1.example.com":                       "meta-data",
		"public-keys:\n    - ssh-ed25519 AAAA someone@somewhere": "meta-data",
		"macaddress: 02:fc:00:00:00:0a":                          "network-config",
	} {
		if text := read(name); !bytes.Contains(text, []byte(says)) {
			t.Errorf("%s does not say %q:\n%s", name, says, text)
		}
	}
}

// TestSeedsAreOfOneSize writes the smallest and the largest seed in turn: the seed
// of a clone must not seem truncated to its guest.
func TestSeedsAreOfOneSize(t *testing.T) {
	f, v := newFiles(t), someVM()
	if err := os.Mkdir(f.Dir(v.ID), 0o700); err != nil {
		t.Fatal(err)
	}
	iso := filepath.Join(f.Dir(v.ID), seedName)
	for _, user := range []int{0, machine.MaxUserData, 1} {
		v.UserData = strings.Repeat("x", user)
		if err := f.Seed(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(iso); err != nil || st.Size() != seedSize {
			t.Errorf("with %d bytes of user data: %v, %v", user, st, err)
		}
		if got := allocated(t, iso); got > int64(user)+256<<10 {
			t.Errorf("with %d bytes of user data it takes %d bytes", user, got)
		}
	}
	v.SSHKeys = []string{strings.Repeat("k", seedSize)}
	if err := f.Seed(t.Context(), v); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a seed that is too large: %v", err)
	}
}

func TestSeedWithoutNetworkNamesNoInterface(t *testing.T) {
	v := someVM()
	v.EnableNetwork = false
	files, err := seedFiles(v)
	if err != nil || string(files["network-config"]) != "version: 2\nethernets: {}\n" {
		t.Errorf("got %q, %v", files["network-config"], err)
	}
}

// TestCloudInitResizesOnlyACopiedRoot reads the vendor data: an overlay cannot be resized.
func TestCloudInitResizesOnlyACopiedRoot(t *testing.T) {
	for mode, want := range map[image.DiskMode]map[string]any{
		image.DiskOverlay: {"growpart": map[string]any{"mode": "off"}, "resize_rootfs": false},
		image.DiskCopy:    nil,
	} {
		v := someVM()
		v.Boot.DiskMode = mode
		files, err := seedFiles(v)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		text, has := files["vendor-data"]
		if err := yaml.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) || has && !strings.HasPrefix(string(text), "#cloud-config\n") {
			t.Errorf("%s: %q, %v", mode, text, err)
		}
	}
}

func TestSetAsideDeletesNothing(t *testing.T) {
	f, v := newFiles(t), someVM()
	if err := f.Provision(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is no directory
		if err := f.SetAside(v.ID); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := filepath.Glob(filepath.Join(filepath.Dir(f.root), "lost", v.ID+"-*", diskName))
	if err != nil || len(kept) != 1 {
		t.Errorf("kept %v, %v", kept, err)
	}
	if _, err := os.Stat(f.Dir(v.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the directory is still there")
	}
}

func TestOrphansAreOnlyDirectoriesOfVMs(t *testing.T) {
	f := newFiles(t)
	for _, name := range []string{"vm_known", "vm_lost", "other", "vm_Not-an-id"} {
		if err := os.Mkdir(filepath.Join(f.root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	orphans, err := f.Orphans(map[string]bool{"vm_known": true})
	if err != nil || len(orphans) != 1 || orphans[0] != "vm_lost" {
		t.Errorf("got %v, %v", orphans, err)
	}
	if err := f.Remove("../vms"); err == nil {
		t.Error("a path was accepted as an id")
	}
}

func BenchmarkProvision(b *testing.B) {
	dir := b.TempDir()
	root := filepath.Join(dir, "vms")
	if err := os.Mkdir(root, 0o700); err != nil {
		b.Fatal(err)
	}
	f, v := New(root, filepath.Join(dir, "templates")), someVM()
	v.DiskMiB = 2048
	if _, err := f.template(b.Context(), v.DiskMiB); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := f.Provision(b.Context(), v); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = f.Remove(v.ID)
		b.StartTimer()
	}
}
