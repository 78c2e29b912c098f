package daemon_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// heldConn opens a connection to the daemon, sends one request, and returns the answer's
// status, 0 without an answer, and its Retry-After. The connection stays open until the
// end of the test, or closeConn.
func (w *world) heldConn(t *testing.T, head string) (status int, retryAfter string, closeConn func()) {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(w.dir, "hatchd.addr"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", strings.TrimSpace(string(addr)))
	if err != nil {
		t.Fatal(err)
	}
	closeConn = func() { _ = conn.Close() }
	t.Cleanup(closeConn)
	// A daemon that refuses the connection need not read this.
	_, _ = fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: h\r\n%s\r\n", head)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "", closeConn // the refusal was lost with the connection
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Retry-After"), closeConn
}

func TestConnectionsAreLimited(t *testing.T) {
	w := &world{dir: t.TempDir(), settings: []string{"HATCH_HTTP_MAX_CONNECTIONS=16"}}
	w.start(t)
	var all []func()
	refused := false
	for range 16 { // two of them are for other hosts
		status, retryAfter, closeConn := w.heldConn(t, "")
		all = append(all, closeConn)
		if status == http.StatusOK {
			continue
		}
		refused = true
		if status != 0 && (status != http.StatusServiceUnavailable || retryAfter == "") {
			t.Errorf("a connection too many gets %d, Retry-After %q", status, retryAfter)
		}
	}
	if !refused {
		t.Error("no connection is refused")
	}
	for _, closeConn := range all {
		closeConn()
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for tries := 0; ; tries++ { // the daemon hears of each end
		if _, err := w.Health(t.Context()); err == nil {
			break
		} else if tries == 2000 {
			t.Errorf("closed connections keep their places: %v", err)
			break
		}
		<-tick.C
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}

func TestHeadersAreLimited(t *testing.T) {
	w := &world{dir: t.TempDir()}
	w.start(t)
	for size, fits := range map[int]bool{32 << 10: true, 100 << 10: false} {
		if status, _, _ := w.heldConn(t, "X-Large: "+strings.Repeat("x", size)+"\r\n"); (status == http.StatusOK) != fits {
			t.Errorf("a header of %d bytes gets %d", size, status)
		}
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}

func TestTheDaemonLimitsItsMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for _, c := range []struct {
		setting, variable string
		want              func(int64) bool
	}{
		{"300", "", func(got int64) bool { return got == 300<<20 }},
		{"0", "", func(got int64) bool { return got > 0 && got <= 4096<<20 }},
		{"300", "1GiB", func(got int64) bool { return got == 1<<40 }}, // the runtime has read the variable
	} {
		t.Setenv("GOMEMLIMIT", c.variable)
		debug.SetMemoryLimit(1 << 40)
		w := &world{dir: t.TempDir(), settings: []string{"HATCH_MEMORY_LIMIT_MIB=" + c.setting}}
		w.start(t)
		if got := debug.SetMemoryLimit(-1); !c.want(got) {
			t.Errorf("with %s MiB, GOMEMLIMIT=%q: the limit is %d", c.setting, c.variable, got)
		}
		if err := w.end(); err != nil {
			t.Error(err)
		}
	}
}
