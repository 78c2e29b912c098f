package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	contract "github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/firecracker"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/probe"
)

const (
	fireRounds = 30 // n, of each
	fireWarmUp = 2  // more rounds, not counted
	fireUID    = 914000
	fireDisk   = 16 << 20 // bytes
	rawTAP     = "raw0"
)

var fireMAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}

// fires are the times of one size.
type fires struct {
	create, sleep, wake compared
}

// compared are the times of one operation: of our driver, which jails and limits, and
// of a raw Firecracker that gets the same API requests, without and with its jailer.
type compared struct{ ours, bare, jailed sample }

// lab has the files of the guest: the probe, a guest of a few KiB, and its disks.
type lab struct {
	dir, memory string // memory is on a tmpfs
	kernel      string
	binary      string
	jailer      string
	driver      contract.Driver
}

// measureFirecracker starts guests, puts them to sleep and wakes them, with our
// driver and with a raw Firecracker, in random order.
func measureFirecracker(out io.Writer, root, dir string) (err error) {
	assets := filepath.Join(root, ".cache", "test", "firecracker")
	l := &lab{
		dir: filepath.Join(dir, "fire"), memory: filepath.Join(dir, "fire", "memory"), kernel: filepath.Join(dir, "fire", "probe"),
		binary: filepath.Join(assets, "firecracker"), jailer: filepath.Join(assets, "jailer"),
	}
	if _, err := os.Stat(l.binary); err != nil {
		fmt.Fprintln(out, "\nFirecracker is not measured, because it is missing: run make test-assets")
		return nil
	}
	if err := os.MkdirAll(l.memory, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", l.memory, "tmpfs", 0, "size=8g"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(l.memory, unix.MNT_DETACH)) }()
	if err := probe.Compile(root, l.kernel); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	l.driver, err = firecracker.New(ctx, firecracker.Config{
		Binary: l.binary, Jailer: l.jailer, Kernels: filepath.Join(l.dir, "kernels"), AnyKVM: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if err := persistentTAP(rawTAP, fireUID); err != nil {
		return err
	}
	for _, mem := range trialSizes {
		var f fires
		err := repeat(fireWarmUp, fireRounds, func() { f = fires{} }, func() error {
			variants := []func(context.Context, *lab, int) error{f.byDriver, f.bare, f.jailed}
			for _, i := range rand.Perm(len(variants)) { // each leaves the host some cleaning up
				if err := variants[i](ctx, l, mem); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		f.print(out, mem)
	}
	return nil
}

// byDriver creates a VM with our driver, puts it to sleep and wakes it.
func (f *fires) byDriver(ctx context.Context, l *lab, mem int) error {
	spec, err := l.spec("vm_ours", mem)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(spec.Dir) }() // in a temporary directory
	if err := plug(&spec); err != nil {
		return err
	}
	began := time.Now()
	m, err := l.driver.Start(ctx, spec)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errors.Unwrap(err))
	}
	if err := firstByte(ctx, m, ""); err != nil {
		return errors.Join(err, m.Kill(ctx), m.Close())
	}
	f.create.ours = append(f.create.ours, time.Since(began))

	saved := filepath.Join(spec.Dir, "saved")
	if err := os.Mkdir(saved, 0o700); err != nil {
		return errors.Join(err, m.Kill(ctx), m.Close())
	}
	gone := vmm{pid: m.Handle().PID}.watch()
	began = time.Now()
	err = errors.Join(m.Save(ctx, spec, saved), m.Kill(ctx))
	f.sleep.ours = append(f.sleep.ours, (<-gone).Sub(began))
	if err := errors.Join(err, m.Close()); err != nil {
		return err
	}

	if err := plug(&spec); err != nil {
		return err
	}
	began = time.Now()
	if m, err = l.driver.Wake(ctx, spec, saved); err != nil {
		return fmt.Errorf("%w: %w", err, errors.Unwrap(err))
	}
	if err = m.Resume(ctx); err == nil {
		err = firstByte(ctx, m, anyLine)
	}
	f.wake.ours = append(f.wake.ours, time.Since(began))
	return errors.Join(err, m.Kill(ctx), m.Close())
}

// plug makes a TAP for a machine; the driver closes it.
func plug(s *contract.Spec) error {
	tap, err := openTAP()
	s.NIC = &contract.NIC{MAC: fireMAC, TAP: tap}
	return err
}

// persistentTAP makes a TAP that a user can open by its name.
func persistentTAP(name string, uid int) error {
	tap, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = tap.Close() }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	fd := int(tap.Fd())
	return errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, req), unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

// anyLine is a line that the probe answers at once.
const anyLine = "echo\n"

// firstByte writes a line to the console and waits for a byte of output.
func firstByte(ctx context.Context, m contract.Machine, line string) error {
	console, err := m.Dial(ctx, contract.ChannelConsole)
	if err != nil {
		return err
	}
	defer func() { _ = console.Close() }()
	if _, err := io.WriteString(console, line); err != nil {
		return err
	}
	_, err = console.Read(make([]byte, 1))
	return err
}

func (f *fires) bare(ctx context.Context, l *lab, mem int) error {
	return l.raw(ctx, &rawFire{binary: l.binary}, mem, &f.create.bare, &f.sleep.bare, &f.wake.bare)
}

func (f *fires) jailed(ctx context.Context, l *lab, mem int) error {
	return l.raw(ctx, &rawFire{binary: l.binary, jailer: l.jailer}, mem, &f.create.jailed, &f.sleep.jailed, &f.wake.jailed)
}

// raw creates a VM, puts it to sleep and wakes it with API requests alone.
func (l *lab) raw(ctx context.Context, r *rawFire, mem int, create, sleep, wake *sample) (err error) {
	if r.spec, err = l.spec("vm_raw", mem); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(r.spec.Dir) }() // in a temporary directory
	defer r.kill()
	for _, part := range []struct {
		do   func(context.Context) error
		into *sample
	}{{r.create, create}, {r.sleep, sleep}, {r.wake, wake}} {
		began := time.Now()
		if err := part.do(ctx); err != nil {
			return fmt.Errorf("a raw Firecracker: %w", err)
		}
		*part.into = append(*part.into, time.Since(began))
	}
	return nil
}

// spec makes a machine's files: two read-only disks, a writable one, and memory.
func (l *lab) spec(id string, mem int) (contract.Spec, error) {
	s := contract.Spec{
		ID: id, Dir: filepath.Join(l.dir, id), VCPUs: 1, MemMiB: mem, Kernel: l.kernel, Cmdline: "console=ttyS0",
		UID: fireUID, GID: fireUID, Memory: filepath.Join(l.memory, id), Origin: map[string]string{"kernel": "sha256:bench"},
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return s, err
	}
	for _, d := range []contract.Disk{{Serial: "base", ReadOnly: true}, {Serial: "own"}, {Serial: "seed", ReadOnly: true}} {
		d.Path = filepath.Join(s.Dir, d.Serial+".img")
		if err := newFile(d.Path, fireDisk, 0o644); err != nil {
			return s, err
		}
		s.Disks = append(s.Disks, d)
	}
	return s, errors.Join(newFile(s.Memory, int64(mem)<<20, 0o600), os.Chown(s.Memory, fireUID, fireUID))
}

// newFile makes or replaces a sparse file of a size.
func newFile(path string, size int64, mode os.FileMode) error {
	if err := os.WriteFile(path, nil, mode); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

func (f *fires) print(out io.Writer, mem int) {
	fmt.Fprintf(out, "\nFirecracker with a guest of a few KiB, %d MiB: our driver, which jails and limits it, against its API alone, in random order\n", mem)
	for _, c := range []struct {
		what string
		compared
	}{
		{"create, until the first byte on the console", f.create},
		{"sleep, until the process has ended", f.sleep},
		{"wake, until the first byte on the console", f.wake},
	} {
		ours := c.ours.median()
		fmt.Fprintf(out, "  %-44s %s\n", c.what, c.ours.tail())
		for _, raw := range []struct {
			how string
			sample
		}{{"by itself", c.bare}, {"under its jailer, without limits", c.jailed}} {
			fmt.Fprintf(out, "    %-42s %s; ratio %.2f, %s more\n", raw.how, raw.tail(), ratio(c.ours, raw.sample), ms(ours-raw.median()))
		}
	}
}
