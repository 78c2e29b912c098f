package httpprobe

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ask calls Status with a server that sends answer and closes, and returns the
// request that the server read.
func ask(t *testing.T, target, answer string) (status int, asked string, err error) {
	t.Helper()
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	done := make(chan string, 1)
	go func() {
		defer func() { _ = theirs.Close() }()
		req, err := http.ReadRequest(bufio.NewReader(theirs))
		if err != nil {
			done <- err.Error()
			return
		}
		done <- req.Method + " " + req.Host + " " + req.RequestURI
		_, _ = theirs.Write([]byte(answer))
	}()
	status, err = Status(ours, "localhost:80", target)
	_ = ours.Close()
	return status, <-done, err
}

func TestStatusIsOfTheFinalResponse(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		status int // 0: an error
	}{
		"plain":             {"HTTP/1.1 204 No Content\r\n\r\n", 204},
		"an old server":     {"HTTP/1.0 200 OK\r\n\r\nhello", 200},
		"a redirect":        {"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n", 302},
		"with hints before": {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 7) + "HTTP/1.1 500 Oh\r\n\r\n", 500},
		"switched":          {"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101},
		"hints only":        {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 9), 0},
		"a body to come":    {"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", 200},
		"another protocol":  {"SSH-2.0-x\r\n", 0},
		"nothing":           {"", 0},
		"a large header":    {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", maxAnswer) + "\r\n\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			status, asked, err := ask(t, "/a%2Fb?c=d", c.answer)
			if status != c.status || (err == nil) != (c.status != 0) {
				t.Errorf("got %d, %v", status, err)
			}
			if asked != "GET localhost:80 /a%2Fb?c=d" {
				t.Errorf("asked for %s", asked)
			}
		})
	}
}

func TestInvalidTargetsAreNotSent(t *testing.T) {
	for _, target := range []string{"", "health", "/%zz", "/a\r\nHost: x"} {
		var sent bytes.Buffer
		if status, err := Status(writeOnly{&sent}, "localhost", target); err == nil || sent.Len() > 0 {
			t.Errorf("%q: %d, %v, sent %q", target, status, err, sent.String())
		}
	}
}

// writeOnly is a connection without an answer.
type writeOnly struct{ *bytes.Buffer }

// FuzzStatus reads responses of a hostile server.
func FuzzStatus(f *testing.F) {
	f.Add("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		req := &http.Request{Method: http.MethodGet}
		status, err := readStatus(bufio.NewReader(strings.NewReader(answer)), req)
		if err == nil && status < 100 {
			t.Errorf("%q is taken for %d", answer, status)
		}
	})
}
