//nolint:bodyclose // world.do closes bodies at the end of a test, and connections close with theirs
package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"testing"
	"time"
)

// rawGuest replaces the guest by one that writes bytes once it has a request's head. It
// ends when its connection does.
func (w *world) rawGuest(answer func(net.Conn, *http.Request)) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				answer(conn, r)
			}
			_ = conn.Close()
		}
	}()
	w.t.Cleanup(func() { _ = l.Close(); w.proxy.http1.CloseIdleConnections(); <-done })
	w.address = l.Addr().String()
}

func TestHostileGuests(t *testing.T) {
	endless := func(piece string) func(net.Conn, *http.Request) {
		return func(conn net.Conn, _ *http.Request) {
			for {
				if _, err := io.WriteString(conn, piece); err != nil {
					return
				}
			}
		}
	}
	say := func(answer string) func(net.Conn, *http.Request) {
		return func(conn net.Conn, _ *http.Request) { _, _ = io.WriteString(conn, answer) }
	}
	head := "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		answer func(net.Conn, *http.Request)
		code   string
	}{
		"an endless head": {func(conn net.Conn, r *http.Request) {
			_, _ = io.WriteString(conn, head)
			endless("X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")(conn, r)
		}, "bad_answer"},
		"an endless line":                {endless("a"), "bad_answer"},
		"endless provisional answers":    {endless("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"), "bad_answer"},
		"endless continues":              {endless("HTTP/1.1 100 Continue\r\n\r\n"), "bad_answer"},
		"no answer":                      {say(""), "bad_answer"},
		"another protocol":               {say("SSH-2.0-OpenSSH\r\n"), "bad_answer"},
		"a status that is none":          {say("HTTP/1.1 9 X\r\n\r\n"), "bad_answer"},
		"two lengths":                    {say(head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), "bad_answer"},
		"a switch that was not asked":    {say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), "bad_answer"},
		"silence, with a time to answer": {func(conn net.Conn, _ *http.Request) { _, _ = io.Copy(io.Discard, conn) }, "late_answer"},
		"a head by the byte": {func(conn net.Conn, _ *http.Request) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				if _, err := conn.Write([]byte{(head + "X-A: " + strings.Repeat("a", 1000))[i%1000]}); err != nil {
					return
				}
				<-tick.C
			}
		}, "late_answer"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, http.NotFoundHandler())
			w.target.ResponseTimeout = time.Minute
			if c.code == "late_answer" {
				w.target.ResponseTimeout = 50 * time.Millisecond
			}
			w.rawGuest(c.answer)
			status, body, _ := w.get("/")
			if status < 502 || status > 504 || !strings.Contains(body, c.code) {
				t.Errorf("got %d, %s", status, body)
			}
			w.await("the use has ended", func() bool { return w.uses == 0 })
		})
	}
}

// A guest that ends without an answer leaves no timer behind.
func TestTheTimeToAnswerEndsWithTheRequest(t *testing.T) {
	w := newWorld(t, http.NotFoundHandler())
	w.target.ResponseTimeout = time.Hour
	w.rawGuest(func(net.Conn, *http.Request) {})
	var failed *visit
	w.proxy.reverse.ErrorHandler = func(rw http.ResponseWriter, r *http.Request, err error) {
		failed = visitIn(r.Context())
		w.proxy.fail(rw, r, err)
	}
	if status, _, _ := w.get("/"); status != http.StatusBadGateway {
		t.Errorf("got %d", status)
	}
	w.await("the use has ended", func() bool { return w.uses == 0 })
	if failed == nil || failed.timer == nil || failed.timer.Stop() {
		t.Errorf("the time to answer goes on")
	}
}

// An answer that breaks off does not look complete to the client.
func TestBrokenBodies(t *testing.T) {
	for name, answer := range map[string]string{
		"a short body":       "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"a bad chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
		"a missing chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"an endless trailer": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X-A: a\r\n", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, http.NotFoundHandler())
			w.rawGuest(func(conn net.Conn, _ *http.Request) { _, _ = io.WriteString(conn, answer) })
			resp, err := w.client().Do(w.request(http.MethodGet, "/", nil))
			if err != nil {
				return // nothing had come from the guest that could be passed on
			}
			defer resp.Body.Close()
			if all, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("the client got %d, %q as a whole", resp.StatusCode, all)
			}
		})
	}
}

// raw sends bytes to the door and returns the connection.
func (w *world) raw(request string) net.Conn {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.front.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_, _ = io.WriteString(conn, request)
	return conn
}

func TestHostileClients(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"a head that is too large":  {"GET / HTTP/1.1\r\nHost: web.localhost\r\nX-A: " + strings.Repeat("a", 80<<10) + "\r\n\r\n", 431},
		"two lengths":               {"POST / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		"a length and chunks":       {"POST / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501},
		"a bad name of a header":    {"GET / HTTP/1.1\r\nHost: web.localhost\r\nX A: 1\r\n\r\n", 400},
		"no name":                   {"GET / HTTP/1.0\r\n\r\n", 404},
		"two names":                 {"GET / HTTP/1.1\r\nHost: web.localhost\r\nHost: other\r\n\r\n", 400},
		"the name in the target":    {"GET http://other.localhost/ HTTP/1.1\r\nHost: web.localhost\r\n\r\n", 404},
		"an upgrade to nonsense":    {"GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade\r\nUpgrade: \x01\r\n\r\n", 400},
		"an upgrade that is not UT": {"GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade\r\nUpgrade: \xc3\xa4\r\n\r\n", 502},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, say)
			resp, err := http.ReadResponse(bufio.NewReader(w.raw(c.request)), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("got %d, want %d", resp.StatusCode, c.status)
			}
		})
	}
}

// A client that goes ends its request at the guest, too.
func TestAClientThatGoes(t *testing.T) {
	ended := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		close(ended)
	}))
	conn := w.raw("GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	<-ended
	w.await("the use has ended", func() bool { return w.uses == 0 })
}

func TestProvisionalAnswers(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Link", "</a.css>")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.Header().Del("Link")
		rw.WriteHeader(http.StatusNoContent)
	}))
	var got []string
	r := w.request(http.MethodGet, "/", nil)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, fmt.Sprint(code, h.Get("Link")))
			return nil
		},
	}))
	if resp := w.do(r); resp.StatusCode != http.StatusNoContent || len(got) != 1 || got[0] != "103</a.css>" {
		t.Errorf("got %d after %q", resp.StatusCode, got)
	}
}

// A client that asks before it sends is asked by the guest, and one that is refused sends
// nothing.
func TestContinue(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
	}))
	conn := w.raw("POST /take HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	in := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatalf("got %v, %v", resp, err)
	}
	_, _ = io.WriteString(conn, "abc")
	resp, err := http.ReadResponse(in, nil)
	if err != nil || text(t, resp.Body) != "3" {
		t.Fatalf("got %v, %v", resp, err)
	}
	conn = w.raw("POST /refuse HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Fatalf("got %v, %v", resp, err)
	}
}

// A guest that answers before the body's end is heard, and the client still sends.
func TestAnEarlyAnswer(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Connection", "close")
		rw.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	const size = 64 << 20
	conn := w.raw(fmt.Sprintf("POST / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: %d\r\n\r\n", size))
	sent := make(chan int64)
	go func() { n, _ := io.CopyN(conn, zeros{}, size); sent <- n }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Fatalf("got %v, %v", resp, err)
	}
	if n := <-sent; n != size {
		t.Errorf("the client could send %d bytes", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A body is passed on as it comes, both ways at once, also without TLS and HTTP/2.
func TestBothWaysAtOnce(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(rw)
		_ = control.EnableFullDuplex()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintln(rw, "got", lines.Text())
			_ = control.Flush()
		}
	}))
	for name, version := range map[string]func(*http.Protocols){
		"HTTP/1.1": func(p *http.Protocols) { p.SetHTTP1(true) }, "HTTP/2": func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) },
	} {
		t.Run(name, func(t *testing.T) {
			transport := &http.Transport{Protocols: new(http.Protocols)}
			defer transport.CloseIdleConnections()
			version(transport.Protocols)
			body, in := io.Pipe()
			go func() { _, _ = fmt.Fprintln(in, "one") }()
			resp, err := transport.RoundTrip(w.request(http.MethodPost, "/", body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answers := bufio.NewScanner(resp.Body)
			for i, line := range []string{"one", "two", "three"} {
				if i > 0 {
					_, _ = fmt.Fprintln(in, line)
				}
				if !answers.Scan() || answers.Text() != "got "+line {
					t.Fatalf("got %q, %v", answers.Text(), answers.Err())
				}
			}
			_ = in.Close()
			if answers.Scan() {
				t.Errorf("got %q after the end", answers.Text())
			}
		})
	}
}

// Bodies of any size pass in little memory, at the pace of the slower side.
func TestLargeBodies(t *testing.T) {
	const size = 256 << 20
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(rw, n)
			return
		}
		_, _ = io.CopyN(rw, zeros{}, size)
	}))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if body := text(t, w.do(w.request(http.MethodPost, "/", io.LimitReader(zeros{}, size))).Body); body != fmt.Sprint(int64(size)) {
		t.Errorf("up: the guest got %s bytes", body)
	}
	if n, err := io.Copy(io.Discard, w.do(w.request(http.MethodGet, "/", nil)).Body); n != size || err != nil {
		t.Errorf("down: the client got %d bytes, %v", n, err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
		t.Errorf("%d MiB were allocated for two bodies of 256 MiB", grown>>20)
	}
}
