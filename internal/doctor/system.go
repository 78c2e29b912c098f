package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/host/owned"
	"github.com/hatchvm/hatch/internal/host/recipe"
	"github.com/hatchvm/hatch/internal/host/space"
)

// System is the checks' access to the host. Each function reads, or undoes what it
// tries.
type System struct {
	ReadFile     func(path string) ([]byte, error)
	Stat         func(path string) (fs.FileInfo, error)
	Writable     func(dir string) error
	OpenDevice   func(path string) error
	LookPath     func(program string) (string, error)
	Command      func(ctx context.Context, program string, args ...string) (output string, err error) // stdout and stderr
	TryInJail    func(ctx context.Context, program string, args ...string) error
	ProbeKVM     func() kvm.Result
	Listen       func(ctx context.Context, addr string) error                      // listens there and closes
	LookupHost   func(ctx context.Context, host string) ([]string, error)          // addresses, by the DNS
	Answers      func(ctx context.Context, server string) (ills []string, ok bool) // whether a hatchd answers at a URL, http or unix, and what it says is wrong
	CreateLinks  func() error                                                      // a bridge and a TAP, in a network namespace that is dropped
	Chains       func() ([]Chain, error)
	Owned        func(dir string, trustAbove bool) error // whether other users can change or replace it
	FreeMiB      func(dir string) (int64, error)
	Reflink      func(dir string) (bool, error)
	MemoryPlace  func(dir string) (memory.Place, error)
	MountMemory  func(dir string) error          // a tmpfs, in a mount namespace that is dropped
	DebianMirror func(configured []string) error // whether there is one to build images from
}

// Local is the host this process runs on.
func Local() System {
	return System{
		ReadFile: os.ReadFile,
		Stat:     os.Stat,
		Writable: func(dir string) error { return unix.Access(dir, unix.W_OK) },
		OpenDevice: func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
		LookPath: exec.LookPath,
		Command: func(ctx context.Context, program string, args ...string) (string, error) {
			out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
			return string(out), err
		},
		TryInJail: func(ctx context.Context, program string, args ...string) error {
			_, err := jail.Try(ctx, program, args...)
			return err
		},
		ProbeKVM:     kvm.Probe,
		Listen:       canListen,
		LookupHost:   net.DefaultResolver.LookupHost,
		Answers:      hatchdAnswers,
		CreateLinks:  createLinks,
		Chains:       filterChains,
		Owned:        owned.Check,
		FreeMiB:      func(dir string) (int64, error) { free, err := space.Free(dir); return free >> 20, err },
		Reflink:      canReflink,
		MemoryPlace:  memory.Look,
		MountMemory:  memory.TryMount,
		DebianMirror: recipe.CheckSources,
	}
}

func canListen(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err == nil {
		return l.Close()
	}
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys.Err
	}
	return err
}

// noImagePart is the part of a hatchd that has no image yet, as after its installation.
const noImagePart = "image"

// hatchdAnswers requests /healthz, which needs no key. ok says that a hatchd answers,
// and ills what is wrong with it.
func hatchdAnswers(ctx context.Context, server string) (ills []string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true}
	if path, isSocket := strings.CutPrefix(server, "unix://"); isSocket {
		server = "http://localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/healthz", nil)
	if err != nil {
		return nil, false
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, false
	}
	defer func() { _ = res.Body.Close() }()
	var health struct {
		Status string `json:"status"`
		Parts  []struct{ Name, Status, Message string }
	}
	err = json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&health)
	for _, part := range health.Parts {
		if part.Status != "ok" && part.Name != noImagePart {
			ills = append(ills, part.Name+": "+part.Message)
		}
	}
	return ills, err == nil && health.Status != "" && health.Parts != nil
}

// canReflink clones one block between two nameless files in dir.
func canReflink(dir string) (bool, error) {
	from, err := namelessFile(dir)
	if err != nil {
		return false, err
	}
	defer func() { _ = from.Close() }()
	to, err := namelessFile(dir)
	if err != nil {
		return false, err
	}
	defer func() { _ = to.Close() }()
	if _, err := from.Write(make([]byte, 4096)); err != nil {
		return false, fmt.Errorf("cannot write to %s: %w", dir, err)
	}
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil, nil
}

func namelessFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	if !errors.Is(err, syscall.EOPNOTSUPP) {
		return nil, fmt.Errorf("cannot make a file in %s: %w", dir, err)
	}
	f, err := os.CreateTemp(dir, ".hatch-doctor-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
