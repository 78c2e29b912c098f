//nolint:bodyclose // world.do closes bodies at the end of a test, and connections close with theirs
package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/hatchvm/hatch/internal/route"
)

// health is a gRPC server with an answer, an error and a stream.
type health struct {
	healthpb.UnimplementedHealthServer
}

func (health) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if r.Service != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "no %s", r.Service)
	}
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "yes"))
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func (health) Watch(_ *healthpb.HealthCheckRequest, s grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	for i := range 3 {
		if err := s.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_ServingStatus(i)}); err != nil {
			return err
		}
	}
	return status.Error(codes.Aborted, "enough")
}

func TestGRPC(t *testing.T) {
	w := newWorld(t, http.NotFoundHandler())
	w.target.Upstream = route.H2C
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	guest := grpc.NewServer()
	healthpb.RegisterHealthServer(guest, health{})
	served := make(chan struct{})
	go func() { _ = guest.Serve(l); close(served) }()
	t.Cleanup(func() { guest.Stop(); <-served })
	w.address = l.Addr().String()

	conn, err := grpc.NewClient("passthrough:///"+w.front.Listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("web.localhost"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := healthpb.NewHealthClient(conn)
	var trailer metadata.MD
	got, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.Trailer(&trailer))
	if err != nil || got.Status != healthpb.HealthCheckResponse_SERVING || len(trailer["x-trailer"]) != 1 {
		t.Errorf("got %v, %v, trailer %v", got, err, trailer)
	}
	if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "it"}); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "no it" {
		t.Errorf("got %v", err)
	}
	stream, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if got, err := stream.Recv(); err != nil || int(got.Status) != i {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("got %v", err)
	}
	w.address = ""
	w.mu.Lock()
	w.machine = 2
	w.mu.Unlock()
	if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("without the guest: %v", err)
	}
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			return
		}
		conn.SetReadLimit(1 << 20)
		for {
			kind, message, err := conn.Read(r.Context())
			if err != nil || conn.Write(r.Context(), kind, message) != nil {
				return
			}
		}
	}))
	conn, _, err := websocket.Dial(t.Context(), w.front.URL+"/socket", &websocket.DialOptions{Host: "web.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(1 << 20)
	for _, size := range []int{1, 100, 1 << 19} {
		if err := conn.Write(t.Context(), websocket.MessageBinary, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if _, message, err := conn.Read(t.Context()); err != nil || len(message) != size {
			t.Errorf("got %d of %d bytes, %v", len(message), size, err)
		}
	}
	w.await("the socket is a use", func() bool { return w.uses == 1 })
	w.sleep() // what comes on an open socket wakes the VM
	if err := conn.Write(t.Context(), websocket.MessageText, []byte("wake")); err != nil {
		t.Fatal(err)
	}
	if _, message, err := conn.Read(t.Context()); err != nil || string(message) != "wake" || w.wakes != 1 {
		t.Errorf("got %q, %v after %d wakes", message, err, w.wakes)
	}
	_ = conn.Close(websocket.StatusNormalClosure, "")
	w.await("the use has ended", func() bool { return w.uses == 0 })
}

// A client of another protocol may end its half first, and gets the rest of the answer. A
// WebSocket that breaks off is no use of the VM any more.
func TestTheEndOfAnUpgradedConnection(t *testing.T) {
	for protocol, half := range map[string]bool{"tcp": true, "websocket": false} {
		t.Run(protocol, func(t *testing.T) {
			release := make(chan struct{})
			w := newWorld(t, http.NotFoundHandler())
			w.rawGuest(func(conn net.Conn, _ *http.Request) {
				fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
				got, _ := io.ReadAll(conn)
				<-release
				fmt.Fprintf(conn, "got %s", got)
			})
			conn := w.raw("GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n")
			in := bufio.NewReader(conn)
			if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("got %v, %v", resp, err)
			}
			_, _ = io.WriteString(conn, "all")
			_ = conn.(*net.TCPConn).CloseWrite()
			if !half {
				w.await("the use has ended", func() bool { return w.uses == 0 })
				close(release)
				return
			}
			close(release)
			if got := text(t, in); got != "got all" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// Events pass one by one, also those of an answer that says its length.
func TestEventsAreNotHeldBack(t *testing.T) {
	for name, head := range map[string]http.Header{
		"server-sent events": {"Content-Type": {"text/event-stream"}}, "chunks": {}, "a known length": {"Content-Length": {"9"}},
	} {
		t.Run(name, func(t *testing.T) {
			next := make(chan struct{})
			w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				maps.Copy(rw.Header(), head)
				_ = http.NewResponseController(rw).Flush()
				for i := range 3 {
					<-next
					fmt.Fprintf(rw, "e%d\n", i)
					_ = http.NewResponseController(rw).Flush()
				}
			}))
			resp := w.do(w.request(http.MethodGet, "/", nil)) // its head is here before the first event
			events := bufio.NewScanner(resp.Body)
			for i := range 3 {
				next <- struct{}{}
				if !events.Scan() || events.Text() != fmt.Sprintf("e%d", i) {
					t.Fatalf("got %q, %v", events.Text(), events.Err())
				}
			}
		})
	}
}

// deadlines notes when deadlines are set between writes.
type deadlines struct {
	*httptest.ResponseRecorder
	last string
}

func (d *deadlines) Write(b []byte) (int, error) {
	d.last = "write"
	return d.ResponseRecorder.Write(b)
}

func (d *deadlines) SetWriteDeadline(time.Time) error { d.last = "deadline"; return nil }

// What ends a body has a deadline of its own: minutes may have passed since the last write.
func TestTheEndOfABodyHasItsTime(t *testing.T) {
	w := newWorld(t, say)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://web.localhost/", nil)
	to := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	w.proxy.ServeHTTP(to, r)
	if to.Code != http.StatusOK || to.Body.Len() == 0 || to.last != "deadline" {
		t.Errorf("got %d; the last was a %s", to.Code, to.last)
	}
}

func TestTrailers(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(rw, r.Body)
		_ = http.NewResponseController(rw).Flush() // a trailer follows chunks only
		rw.Header().Set(http.TrailerPrefix+"X-Sum", r.Trailer.Get("X-In"))
		for _, name := range []string{"X-Forwarded-For", "X_real_ip", "Authorization"} {
			if got := r.Trailer.Get(name); got != "" {
				t.Errorf("the guest got the trailer %s: %s", name, got)
			}
		}
	}))
	body, in := io.Pipe()
	r := w.request(http.MethodPost, "/", body)
	r.Trailer = http.Header{"X-In": nil, "X-Forwarded-For": nil, "X_real_ip": nil, "Authorization": nil}
	go func() {
		_, _ = io.WriteString(in, "abc")
		for name := range r.Trailer {
			r.Trailer.Set(name, "7")
		}
		_ = in.Close()
	}()
	resp := w.do(r)
	if got := text(t, resp.Body); got != "abc" || resp.Trailer.Get("X-Sum") != "7" {
		t.Errorf("got %q, trailer %v", got, resp.Trailer)
	}
}

// HTTP/2 with TLS leads to the same guests, and says so to them.
func TestHTTP2(t *testing.T) {
	w := newWorld(t, say, func(c *Config) { c.HSTS = 1000 * 1e9 })
	secure := NewServer(w.proxy, w.proxy.cfg.Log)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	secure.TLSConfig = &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	go func() { _ = secure.ServeTLS(l, "", ""); close(served) }()
	defer func() { _ = secure.Close(); <-served }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	r := w.request(http.MethodGet, "/", nil)
	r.URL.Scheme, r.URL.Host = "https", l.Addr().String()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := text(t, resp.Body)
	if resp.ProtoMajor != 2 || resp.Header.Get("Strict-Transport-Security") != "max-age=1000" {
		t.Errorf("got %s, %v", resp.Proto, resp.Header)
	}
	for _, want := range []string{"X-Forwarded-Proto: https", "X-Forwarded-Port: 443"} {
		if !strings.Contains(body, want) {
			t.Errorf("the guest got %q", body)
		}
	}
}

func TestTheRedirectToTLS(t *testing.T) {
	for host, want := range map[string]string{
		"web.localhost": "https://web.localhost:8443/a?b", "web.localhost:80": "https://web.localhost:8443/a?b",
		"[::1]": "https://[::1]:8443/a?b", "[::1]:80": "https://[::1]:8443/a?b",
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/a?b", nil)
		r.Host = host
		to := httptest.NewRecorder()
		RedirectToTLS(8443).ServeHTTP(to, r)
		if got := to.Header().Get("Location"); to.Code != http.StatusPermanentRedirect || got != want {
			t.Errorf("%s: got %d to %q, want %q", host, to.Code, got, want)
		}
	}
}
