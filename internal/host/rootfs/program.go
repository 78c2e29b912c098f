package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
)

// unprivileged is the user and the group that the programs run as.
const unprivileged = 65534

// imageArg is the path by which a program opens the image: its descriptor, so that
// the program needs no access to directories.
const imageArg = "/proc/self/fd/3"

// Bounds of one run of a program.
const (
	runTime   = 30 * time.Second
	runMemory = 4 << 30 // bytes of address space
	maxStderr = 16 << 10
)

// program reads one image.
type program struct {
	path  string
	image *os.File
}

// openProgram finds the program and makes the image readable for it.
func (i *Inspector) openProgram(ctx context.Context, image *os.File, name, pkg, format string) (*program, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, errs.New(errs.Unsupported, "tool_missing",
			"cannot read the root file system: %s, which reads %s, is not installed on the host", name, format).
			WithHint("apt-get install %s", pkg)
	}
	readable, err := i.makeReadable(ctx, image)
	if errs.Is(err, errs.Exhausted) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the root file system readable: %w", err)
	}
	return &program{path: path, image: readable}, nil
}

func (p *program) close() { _ = p.image.Close() }

// result is the result of a program.
type result struct {
	stdout []byte
	stderr string
	code   int
}

// run runs the program with an empty environment, no input, and the image.
// More than limit bytes of output are an error.
func (p *program) run(ctx context.Context, limit int64, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	stdout, stderr := &bounded{limit: limit, strict: true}, &bounded{limit: maxStderr}
	cmd := limited(ctx, p.path, args)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBUGFS_PAGER=__none__"}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{p.image}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: unprivileged, Gid: unprivileged}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case stdout.exceeded:
		return result{}, fmt.Errorf("%w: a file in it is larger than %d bytes", errDamaged, limit)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return result{}, fmt.Errorf("%w: reading it takes longer than %s", errDamaged, runTime)
	case ctx.Err() != nil:
		return result{}, ctx.Err()
	case err != nil && !errors.As(err, &exit):
		return result{}, fmt.Errorf("cannot run %s: %w", p.path, err)
	}
	return result{stdout: stdout.kept.Bytes(), stderr: stderr.kept.String(), code: cmd.ProcessState.ExitCode()}, nil
}

// limited returns the command that starts a program with limits. prlimit sets them
// before the program runs; hatchd might lack the privilege to set them later.
func limited(ctx context.Context, path string, args []string) *exec.Cmd {
	limits := []string{
		"--as=" + strconv.FormatInt(runMemory, 10), "--cpu=" + strconv.Itoa(int(runTime.Seconds())),
		"--fsize=0", // it writes to pipes only
		"--core=0", "--", path,
	}
	return exec.CommandContext(ctx, "prlimit", append(limits, args...)...)
}

// bounded keeps the first limit bytes. It drops the rest or, when it is strict,
// fails, which ends the writing program.
type bounded struct {
	kept             bytes.Buffer // not embedded: its ReadFrom knows no bound
	limit            int64
	strict, exceeded bool
}

func (b *bounded) Write(p []byte) (int, error) {
	left := b.limit - int64(b.kept.Len())
	if int64(len(p)) <= left {
		return b.kept.Write(p)
	}
	b.exceeded = true
	if b.strict {
		return 0, io.ErrShortWrite
	}
	_, _ = b.kept.Write(p[:left]) // never fails
	return len(p), nil
}

// makeReadable returns a descriptor of the image that an unprivileged process can
// open again: of the file itself when all users may read it, else of a private copy
// without a name, which shares its blocks or at least its holes. Errors:
// errs.Exhausted when the data directory has no room for the copy.
func (i *Inspector) makeReadable(ctx context.Context, f *os.File) (*os.File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 || st.Mode().Perm()&0o004 != 0 {
		return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	}
	if err := os.MkdirAll(i.config.ModulesDir, 0o700); err != nil {
		return nil, err
	}
	c, err := os.CreateTemp(i.config.ModulesDir, stagePrefix)
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.Remove(c.Name()), c.Chmod(0o444))
	if err == nil && unix.IoctlFileClone(int(c.Fd()), int(f.Fd())) != nil {
		err = i.fill(ctx, c, f, st)
	}
	if err != nil {
		return nil, errors.Join(space.Full(err), c.Close())
	}
	return c, nil
}

// fill copies a file to an empty one of the data directory, if there is room for it.
func (i *Inspector) fill(ctx context.Context, to, from *os.File, st fs.FileInfo) error {
	if err := space.Require(i.config.ModulesDir, "a copy of the root file system", space.Taken(st), i.config.Reserve); err != nil {
		return err
	}
	if err := to.Truncate(st.Size()); err != nil {
		return err
	}
	return sparse.Part("root file system").Copy(ctx, to, from, st.Size())
}
