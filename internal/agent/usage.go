package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Usage implements [wire.UsageHandler].
func (a *Agent) Usage() (wire.Usage, error) { return usage("/proc", "/") }

// usage reads the kernel's counters below proc, and the size of the file system at
// root.
func usage(proc, root string) (wire.Usage, error) {
	var u wire.Usage
	for _, part := range []struct {
		file string
		read func(text string, u *wire.Usage) error
	}{
		{"uptime", readUptime},
		{"stat", readCPU},
		{"loadavg", readLoad},
		{"meminfo", readMemory},
	} {
		text, err := os.ReadFile(filepath.Join(proc, part.file))
		if err != nil {
			return u, err
		}
		if err := part.read(string(text), &u); err != nil {
			return u, fmt.Errorf("cannot read %s: %w", filepath.Join(proc, part.file), err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return u, fmt.Errorf("cannot read the size of the file system at %s: %w", root, err)
	}
	u.DiskTotal, u.DiskFree = int64(fs.Blocks)*fs.Frsize, int64(fs.Bfree)*fs.Frsize
	return u, nil
}

func readUptime(text string, u *wire.Usage) error {
	var seconds float64
	_, err := fmt.Sscan(text, &seconds)
	u.UptimeMillis = int64(seconds * 1000)
	return err
}

// readCPU sums the times of all CPUs, in hundredths of a second, without idle, I/O
// wait and steal.
func readCPU(text string, u *wire.Usage) error {
	var user, nice, system, idle, iowait, irq, softirq int64
	_, err := fmt.Sscanf(text, "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq)
	u.CPUBusyMillis = 10 * (user + nice + system + irq + softirq)
	return err
}

func readLoad(text string, u *wire.Usage) error {
	_, err := fmt.Sscan(text, &u.Load[0], &u.Load[1], &u.Load[2])
	return err
}

func readMemory(text string, u *wire.Usage) error {
	wanted := map[string]*int64{"MemTotal": &u.MemTotal, "MemAvailable": &u.MemAvailable}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		to := wanted[name]
		if to == nil {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return err
		}
		*to = kib << 10
		delete(wanted, name)
	}
	if len(wanted) > 0 {
		return fmt.Errorf("%d of the fields MemTotal and MemAvailable are missing", len(wanted))
	}
	return nil
}
