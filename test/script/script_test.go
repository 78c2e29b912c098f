package script

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hatchvm/hatch/client"
)

const (
	startTimeout = 60 * time.Second // a daemon that is not well by then never will be
	stopTimeout  = 40 * time.Second
	startPoll    = 20 * time.Millisecond
)

// build builds hatchd, hatchd-fake and hatch into dir, with the race detector when the
// tests themselves have it.
func build(t *testing.T, dir string) {
	t.Helper()
	args := []string{"build", "-o", dir}
	if raceDetector {
		args = append(args, "-race")
	}
	args = append(args, "./cmd/hatchd", "./cmd/hatchd-fake", "./cmd/hatch")
	cmd := exec.Command("go", args...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the programs: %v\n%s", err, out)
	}
}

func TestScripts(t *testing.T) {
	bin := t.TempDir()
	build(t, bin)
	testscript.Run(t, testscript.Params{
		Dir:           ".",
		Setup:         func(env *testscript.Env) error { return setup(env, bin) },
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon":   daemonCommand,
			"pki":      pkiCommand,
			"getenv":   getenvCommand,
			"mode":     modeCommand,
			"previous": previousCommand,
			"receiver": receiverCommand,
		},
	})
}

// daemonsKey finds a script's daemons among its values.
type daemonsKey struct{}

// daemons are the processes of hatchd-fake that a script has started.
type daemons struct {
	program string
	running map[string]*daemon // by name
}

// daemon is one process of hatchd-fake.
type daemon struct {
	process *os.Process
	exited  chan struct{} // closed once it is
	err     error         // of its end; written before exited is closed
}

// setup puts the programs into PATH and keeps what this machine has out of the
// way.
func setup(env *testscript.Env, bin string) error {
	for _, dir := range []string{"home", "tmp"} {
		if err := os.Mkdir(filepath.Join(env.WorkDir, dir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	config := filepath.Join(env.WorkDir, "none.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		return err
	}
	env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Values[daemonsKey{}] = &daemons{program: filepath.Join(bin, "hatchd-fake"), running: map[string]*daemon{}}
	env.Values[receiverKey{}] = &receiver{status: http.StatusOK, arrived: make(chan struct{}, 1)}
	env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("HATCH_CONFIG", config) // not the one this machine may have
	env.Setenv("HATCH_DATA_DIR", filepath.Join(env.WorkDir, "data"))
	env.Setenv("HATCH_HTTP_ADDR", "127.0.0.1:0")
	env.Setenv("HATCH_PROXY_ADDR", "127.0.0.1:0")
	env.Setenv("HATCH_WARM", "manual")
	return nil
}

// daemonCommand starts hatchd-fake, waits until it is well and points hatch at it,
// or stops it:
//
//	daemon start NAME   (its output goes to NAME.out and NAME.log)
//	daemon stop NAME
//	daemon kill NAME
func daemonCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: daemon start|stop|kill NAME")
	}
	d := ts.Value(daemonsKey{}).(*daemons)
	switch args[0] {
	case "start":
		d.start(ts, args[1])
	case "stop":
		d.end(ts, args[1], syscall.SIGTERM)
	case "kill":
		d.end(ts, args[1], syscall.SIGKILL)
	default:
		ts.Fatalf("usage: daemon start|stop|kill NAME")
	}
}

func (d *daemons) start(ts *testscript.TestScript, name string) {
	dir := ts.Getenv("HATCH_DATA_DIR")
	addrFile := filepath.Join(dir, "hatchd.addr")
	if err := os.Remove(addrFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		ts.Fatalf("%v", err)
	}
	cmd := exec.Command(d.program)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environment(ts)
	cmd.Stdout, cmd.Stderr = create(ts, name+".out"), create(ts, name+".log")
	ts.Check(cmd.Start())
	it := &daemon{process: cmd.Process, exited: make(chan struct{})}
	go func() { it.err = cmd.Wait(); close(it.exited) }()
	ts.Defer(func() {
		_ = it.process.Kill()
		<-it.exited
	})
	d.running[name] = it
	scheme, ask := "http://", http.DefaultClient
	if ts.Getenv("HATCH_HTTP_TLS_CERT") != "" { // it may want a certificate; its socket does not
		scheme, ask = "https://", socketClient(filepath.Join(dir, "hatchd.sock"))
	}
	addr, err := awaitWell(addrFile, ask, it.exited)
	if err != nil {
		ts.Fatalf("hatchd %s: %v\n%s%s", name, err, ts.ReadFile(name+".out"), ts.ReadFile(name+".log"))
	}
	ts.Setenv("HATCH_URL", scheme+addr)
}

// environment is what a script's programs get.
func environment(ts *testscript.TestScript) []string {
	env := []string{"GORACE=halt_on_error=1", "PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "TMPDIR=" + ts.Getenv("TMPDIR")}
	for _, name := range []string{
		"HATCH_CONFIG", "HATCH_DATA_DIR", "HATCH_HTTP_ADDR", "HATCH_PROXY_ADDR", "HATCH_API_KEY",
		"HATCH_BRIDGE_CIDR", "HATCH_DEFAULT_MEM_MIB", "HATCH_MEM_OVERCOMMIT", "HATCH_MAX_SNAPSHOTS_PER_VM", "HATCH_WARM", "HATCH_IDLE_TIMEOUT", "HATCH_IDLE_CPU_PERCENT", "HATCH_WEBHOOK_ALLOW_PRIVATE",
		"HATCH_AUTOSTART", "HATCH_IMAGE_DIRS", "HATCH_DATABASE_URL",
		"HATCH_HTTP_TLS_CERT", "HATCH_HTTP_TLS_KEY", "HATCH_HTTP_TLS_CLIENT_CA",
		"HATCH_QUOTA_VMS",
	} {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func create(ts *testscript.TestScript, name string) *os.File {
	f, err := os.Create(ts.MkAbs(name))
	ts.Check(err)
	ts.Defer(func() { _ = f.Close() })
	return f
}

// socketClient returns a client that connects to a unix socket.
func socketClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: client.DialUnix(path)}}
}

// awaitWell returns the daemon's address once GET /healthz answers 200.
func awaitWell(addrFile string, ask *http.Client, exited <-chan struct{}) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		if addr, err := os.ReadFile(addrFile); err == nil {
			at := strings.TrimSpace(string(addr))
			if isWell(ctx, ask, "http://"+at) {
				return at, nil
			}
		}
		select {
		case <-tick.C:
		case <-exited:
			return "", errors.New("it ended")
		case <-ctx.Done():
			return "", fmt.Errorf("it is not well after %s", startTimeout)
		}
	}
}

func isWell(ctx context.Context, ask *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/healthz", nil)
	if err != nil {
		return false
	}
	resp, err := ask.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (d *daemons) end(ts *testscript.TestScript, name string, with syscall.Signal) {
	it, ok := d.running[name]
	if !ok {
		ts.Fatalf("no daemon %s was started", name)
	}
	delete(d.running, name)
	ts.Check(it.process.Signal(with))
	select {
	case <-it.exited:
	case <-time.After(stopTimeout):
		ts.Fatalf("hatchd %s did not end:\n%s", name, ts.ReadFile(name+".log"))
	}
	if with == syscall.SIGTERM && it.err != nil {
		ts.Fatalf("hatchd %s ended badly, %v:\n%s", name, it.err, ts.ReadFile(name+".log"))
	}
}

// getenvCommand sets a variable to a file's text, without white space around
// it: getenv NAME FILE, where FILE may be stdout.
func getenvCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: getenv NAME FILE")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// modeCommand checks a file's permissions: mode FILE 0600.
func modeCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode FILE OCTAL")
	}
	want, err := strconv.ParseUint(args[1], 8, 32)
	ts.Check(err)
	st, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := st.Mode().Perm(); got != os.FileMode(want) {
		ts.Fatalf("%s has mode %04o, not %04o", args[0], got, want)
	}
}
