package agent

import (
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func procFiles() map[string]string {
	return map[string]string{
		"uptime":  "3600.25 7000.10\n",
		"stat":    "cpu  100 20 30 4000 50 6 7 80 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n",
		"loadavg": "0.25 1.50 2.00 2/134 4711\n",
		"meminfo": "MemTotal:         200000 kB\nMemFree:           10000 kB\nMemAvailable:     150000 kB\nHugePages_Total:       0\n",
	}
}

func TestUsageIsReadFromTheKernel(t *testing.T) {
	dir := t.TempDir()
	for name, text := range procFiles() {
		write(t, filepath.Join(dir, name), text)
	}
	got, err := usage(dir, "/")
	if err != nil {
		t.Fatal(err)
	}
	if got.DiskTotal <= 0 || got.DiskFree < 0 || got.DiskFree > got.DiskTotal {
		t.Errorf("the disk has %d bytes, %d of them free", got.DiskTotal, got.DiskFree)
	}
	got.DiskTotal, got.DiskFree = 0, 0
	want := wire.Usage{
		UptimeMillis: 3600250, CPUBusyMillis: 1630, Load: [3]float64{0.25, 1.5, 2},
		MemTotal: 200000 << 10, MemAvailable: 150000 << 10,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestUsageOfThisKernel(t *testing.T) {
	got, err := usage("/proc", "/")
	if err != nil {
		t.Fatal(err)
	}
	if got.UptimeMillis <= 0 || got.CPUBusyMillis <= 0 || got.MemAvailable <= 0 || got.MemTotal < got.MemAvailable {
		t.Errorf("got %+v", got)
	}
}

func TestUsageThatCannotBeReadIsAnError(t *testing.T) {
	for name := range procFiles() {
		for _, bad := range []string{"", "nonsense\n", "MemTotal: 1 kB\n"} {
			dir := t.TempDir()
			for other, text := range procFiles() {
				write(t, filepath.Join(dir, other), text)
			}
			write(t, filepath.Join(dir, name), bad)
			if got, err := usage(dir, "/"); err == nil {
				t.Errorf("%s with %q gave %+v", name, bad, got)
			}
		}
	}
}
