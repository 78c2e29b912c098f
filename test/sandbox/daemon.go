package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/client"
)

const (
	startLimit = 2 * time.Minute
	stopLimit  = 60 * time.Second
)

// Daemon is hatchd on one data directory; it can be started and ended again.
// It is not safe for concurrent use.
type Daemon struct {
	Program string // hatchd
	DataDir string
	LogFile string
	Port    int      // of the API, on every address of the sandbox
	Env     []string // added to the environment that Environ returns

	process *os.Process
	exited  chan struct{} // closed when the process has ended
	err     error         // of the process; valid once exited is closed
}

// URL is the base URL of the API.
func (d *Daemon) URL() string { return fmt.Sprintf("http://127.0.0.1:%d", d.Port) }

// PID is the process of the last start.
func (d *Daemon) PID() int { return d.process.Pid }

// Environ returns the environment that hatchd and hatch run with.
func (d *Daemon) Environ() []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(d.LogFile), "LANG=C.UTF-8",
		"HATCH_WARM=manual", "HATCH_DATA_DIR=" + d.DataDir, "HATCH_URL=" + d.URL(), fmt.Sprintf("HATCH_HTTP_ADDR=0.0.0.0:%d", d.Port),
		"http_proxy=http://" + ProxyAddr, "https_proxy=http://" + ProxyAddr,
	}, d.Env...)
}

// PrivateDir makes dir and shows it below /run, and returns that path, which lasts as
// long as the sandbox: only root can change what is above it, as hatchd demands of a
// data directory, while a checkout may lie in the directory of another user.
func PrivateDir(dir string) (string, error) {
	at := filepath.Join("/run", filepath.Base(dir))
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, 0, 0), os.MkdirAll(at, 0o755)); err != nil {
		return "", err
	}
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("cannot show %s at %s: %w", dir, at, err)
	}
	return at, nil
}

// Reset makes an empty data directory.
func (d *Daemon) Reset() error {
	return errors.Join(os.RemoveAll(d.DataDir), os.MkdirAll(d.DataDir, 0o700))
}

// Start starts hatchd and returns once it serves. The error carries the end
// of its log.
func (d *Daemon) Start() error {
	if err := d.launch(); err != nil {
		return fmt.Errorf("cannot start hatchd: %w", err)
	}
	err := Poll(startLimit, d.serving)
	if err != nil {
		return fmt.Errorf("hatchd does not serve: %w\n%s", err, Tail(d.LogFile, 40))
	}
	return nil
}

func (d *Daemon) addrFile() string { return filepath.Join(d.DataDir, "hatchd.addr") }

func (d *Daemon) launch() error {
	if err := os.Remove(d.addrFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(d.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(d.Program)
	cmd.Env = d.Environ()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.process, d.exited = cmd.Process, make(chan struct{})
	go func(exited chan struct{}) {
		d.err = cmd.Wait()
		close(exited)
	}(d.exited)
	return nil
}

func (d *Daemon) serving() (bool, error) {
	select {
	case <-d.exited:
		return false, errors.Join(errors.New("the process has ended"), d.err)
	default:
	}
	if _, err := os.Stat(d.addrFile()); err != nil {
		return false, nil // not yet
	}
	c, err := client.New(d.URL(), "")
	if err != nil {
		return false, err
	}
	_, err = c.Health(context.Background())
	return err == nil, nil
}

// Client returns a client with the admin key.
func (d *Daemon) Client(opts ...client.Option) (*client.Client, error) {
	key, err := os.ReadFile(filepath.Join(d.DataDir, "admin.key"))
	if err != nil {
		return nil, err
	}
	return client.New(d.URL(), strings.TrimSpace(string(key)), opts...)
}

// End sends hatchd a signal and waits for its end. On SIGTERM hatchd must exit
// with 0; otherwise the error carries the end of its log.
func (d *Daemon) End(signal syscall.Signal) error {
	if err := d.process.Signal(signal); err != nil {
		return fmt.Errorf("cannot signal hatchd: %w", err)
	}
	select {
	case <-d.exited:
	case <-time.After(stopLimit):
		return fmt.Errorf("hatchd has not ended %s after %v\n%s", stopLimit, signal, Tail(d.LogFile, 40))
	}
	if signal == syscall.SIGTERM && d.err != nil {
		return fmt.Errorf("hatchd failed at its end: %w\n%s", d.err, Tail(d.LogFile, 20))
	}
	return nil
}

// Poll calls ask every 20 ms until it returns true or an error, or the limit has
// passed.
func Poll(limit time.Duration, ask func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := ask()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s", limit)
		}
		<-tick.C
	}
}

// Tail returns the last lines of a file.
func Tail(file string, lines int) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	var last []string
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		last = append(last, scanner.Text())
		if len(last) > lines {
			last = last[1:]
		}
	}
	return strings.Join(last, "\n")
}
