package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// firstFile is the first descriptor that a program inherits after the standard
// ones, from hatchd as from os/exec.
const firstFile = 3

// bare is a VMM to be started without hatchd, jail and limits, but with the
// arguments, kernel, initramfs and disks of one that hatchd has started.
type bare struct {
	program string
	args    []string
	files   []*os.File // from descriptor firstFile on
	agent   net.Listener
	dir     string
}

// disks are the files to boot from, by the serial of a disk. The writable disk is
// copied.
type disks map[string]string

const writtenDisk = "hatch-disk"

// copyVM is copyVMM for a VM of the image, whose VMM is returned too.
func copyVM(dataDir string, image api.Image, id string, diskMiB int) (vmm, *bare, error) {
	v, err := findVMM(id)
	if err != nil {
		return v, nil, err
	}
	b, err := copyVMM(v, disks{
		"hatch-root": image.RootfsPath,
		"hatch-seed": filepath.Join(dataDir, "vms", id, "seed.iso"),
		writtenDisk:  filepath.Join(dataDir, "templates", fmt.Sprintf("overlay-%dM.ext4", diskMiB)),
	})
	return v, b, err
}

// copyVMM reads the arguments and opens the files of a running VMM.
func copyVMM(v vmm, files disks) (b *bare, err error) {
	dir, err := os.MkdirTemp("", "hatch-bare-")
	if err != nil {
		return nil, err
	}
	program, err := os.Readlink(v.link("exe"))
	b = &bare{program: program, dir: dir, args: slices.DeleteFunc(slices.Clone(v.args[1:]), func(a string) bool { return a == "-S" })}
	if err == nil {
		err = b.openFiles(v, files)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// The arguments that name a descriptor.
var (
	bootFile = regexp.MustCompile(`^/proc/self/fd/(\d+)$`)
	socket   = regexp.MustCompile(`^socket,id=(\w+),fd=(\d+),`)
	diskFile = regexp.MustCompile(`^fd=(\d+),set=(\d+)$`)
	tap      = regexp.MustCompile(`^tap,.*fd=(\d+)$`)
	memory   = regexp.MustCompile(`^\{.*"mem-path":"/proc/self/fd/(\d+)"`)
)

// openFiles opens the files that the VMM had at its start, as the descriptors that
// its arguments name. Its sockets, its TAP and its memory are replaced by new ones.
func (b *bare) openFiles(v vmm, files disks) error {
	for _, arg := range b.args {
		var fd string
		var f *os.File
		var err error
		if m := bootFile.FindStringSubmatch(arg); m != nil {
			fd = m[1]
			f, err = os.Open(v.link("fd", fd))
		} else if m := socket.FindStringSubmatch(arg); m != nil {
			fd = m[2]
			f, err = b.listen(m[1])
		} else if m := diskFile.FindStringSubmatch(arg); m != nil {
			fd = m[1]
			f, err = b.openDisk(m[2], files)
		} else if m := tap.FindStringSubmatch(arg); m != nil {
			fd = m[1]
			f, err = openTAP()
		} else if m := memory.FindStringSubmatch(arg); m != nil {
			fd = m[1]
			f, err = makeMemory(arg)
		} else {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot open the file of %s: %w", arg, err)
		}
		b.put(fd, f)
	}
	if b.agent == nil {
		return errors.New("the VMM has no channel to the agent")
	}
	return nil
}

// file returns the file that the program has as the descriptor fd.
func (b *bare) file(fd string) *os.File {
	number, _ := strconv.Atoi(fd) // digits
	return b.files[number-firstFile]
}

func (b *bare) put(fd string, f *os.File) {
	number, _ := strconv.Atoi(fd) // digits
	for len(b.files) <= number-firstFile {
		b.files = append(b.files, nil)
	}
	b.files[number-firstFile] = f
}

// openDisk opens the disk whose descriptor set has this number, counted from 1.
func (b *bare) openDisk(set string, files disks) (*os.File, error) {
	number, _ := strconv.Atoi(set) // digits
	drive := fmt.Sprintf(`"drive":"disk%d"`, number-1)
	for serial, path := range files {
		if !slices.ContainsFunc(b.args, func(a string) bool {
			return strings.Contains(a, drive) && strings.Contains(a, `"serial":"`+serial+`"`)
		}) {
			continue
		}
		if serial != writtenDisk {
			return os.Open(path)
		}
		to := filepath.Join(b.dir, "disk")
		if out, err := exec.Command("cp", "--sparse=always", path, to).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		return os.OpenFile(to, os.O_RDWR, 0)
	}
	return nil, fmt.Errorf("no file for the disk with %s", drive)
}

// listen makes a socket that replaces the VMM's socket id.
func (b *bare) listen(id string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(b.dir, id), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	if id == "agent" {
		b.agent = l // for its address: QEMU accepts
		return f, nil
	}
	return f, l.Close()
}

func openTAP() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq("bare%d")
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}

// makeMemory makes a file in RAM for a guest, of the size in the argument.
func makeMemory(arg string) (*os.File, error) {
	var backend struct{ Size int64 }
	if err := json.Unmarshal([]byte(arg), &backend); err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "memory")
	if err := f.Truncate(backend.Size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// boot starts QEMU and returns the time until the agent answered.
func (b *bare) boot(ctx context.Context) (took time.Duration, err error) {
	began := time.Now()
	err = b.run(ctx, func(*wire.Client) error {
		took = time.Since(began)
		return nil
	})
	return took, err
}

// run starts QEMU, with more arguments, and kills it when do returns. do gets a
// session with the agent, which has answered.
func (b *bare) run(ctx context.Context, do func(*wire.Client) error, more ...string) (err error) {
	cmd := exec.CommandContext(ctx, b.program, append(slices.Clone(b.args), more...)...)
	cmd.ExtraFiles = b.files
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if err != nil {
			err = fmt.Errorf("%w: %s", err, stderr.String())
		}
	}()
	session, err := b.session(ctx)
	if err != nil {
		return err
	}
	if _, err = session.Status(ctx); err == nil {
		err = do(session)
	}
	return errors.Join(err, session.Close())
}

// session opens a session with the agent of the running QEMU.
func (b *bare) session(ctx context.Context) (*wire.Client, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", b.agent.Addr().String())
	if err != nil {
		return nil, err
	}
	return wire.Connect(ctx, conn)
}

// untilExit waits until the process of a stream has ended.
func untilExit(stream *wire.ProcessStream) (wire.ProcessExit, error) {
	for {
		chunk, err := stream.Next()
		if err != nil {
			return wire.ProcessExit{}, fmt.Errorf("cannot read the result of a process in the guest: %w", err)
		}
		if chunk.Exit != nil {
			return *chunk.Exit, nil
		}
	}
}

func (b *bare) close() error {
	var errs []error
	for _, f := range b.files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if b.agent != nil {
		errs = append(errs, b.agent.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}
