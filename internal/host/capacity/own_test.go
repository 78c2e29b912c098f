package capacity

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestOwnLimitIsAPartOfTheHostsMemory(t *testing.T) {
	for _, c := range []struct{ memMiB, cgroup, want int64 }{
		{1024, math.MaxInt64, 256 << 20},
		{8192, math.MaxInt64, 1024 << 20},
		{1 << 20, math.MaxInt64, 4096 << 20},
		{8192, 100 << 20, 90 << 20},
	} {
		if got := ownLimit(c.memMiB, c.cgroup); got/10 != c.want/10 {
			t.Errorf("%d MiB in a cgroup of %d bytes: %d, want %d", c.memMiB, c.cgroup, got, c.want)
		}
	}
}

func TestACgroupOfVMsThatIsFull(t *testing.T) {
	mount := t.TempDir()
	leaf := filepath.Join(mount, "pids", "hatch", "vms") // of cgroups v1
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		t.Fatal(err)
	}
	for most, full := range map[string]bool{"max": false, "100": false, "48": false, "47": true, "1": true} {
		for file, text := range map[string]string{"pids.max": most, "pids.current": "40\n"} {
			if err := os.WriteFile(filepath.Join(leaf, "..", file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := checkTasks(mount, "/hatch/vms"); (err != nil) != full {
			t.Errorf("with a limit of %s: %v", most, err)
		}
	}
}

func TestTheLowestLimitOfAllCgroupsCounts(t *testing.T) {
	mount := t.TempDir()
	leaf := filepath.Join(mount, "system.slice", "hatchd.service")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, text := range map[string]string{leaf: "max\n", filepath.Dir(leaf): "1048576\n", mount: "2097152\n"} {
		if err := os.WriteFile(filepath.Join(dir, "memory.max"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v1 := filepath.Join(mount, "memory", "system.slice")
	if err := os.MkdirAll(v1, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v1, "memory.limit_in_bytes"), []byte("524288\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for self, want := range map[string]int64{
		"0::/system.slice/hatchd.service\n": 1 << 20,
		"0::/\n":                            2 << 20,
		"4:memory:/system.slice/x\n":        512 << 10, // of cgroups v1
		"4:cpu,cpuacct:/system.slice\n":     math.MaxInt64,
		"":                                  math.MaxInt64,
	} {
		if got := cgroupLimit(mount, []byte(self)); got != want {
			t.Errorf("%q: %d, want %d", self, got, want)
		}
	}
}
