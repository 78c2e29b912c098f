// Command guestserver is what a user's service in a guest may be: it serves HTTP/1.1 and
// HTTP/2 without TLS on the ports 8080 and 8081, and gRPC on port 9000.
//
// Tests with real guests copy it into one and reach it through hatchd's doors. It is a
// program of its own, and static, because the minimal image has no libraries.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/hatchvm/hatch/test/payload"
)

func main() {
	failed := make(chan error)
	calls := grpc.NewServer()
	healthpb.RegisterHealthServer(calls, health{})
	listen(failed, ":9000", calls.Serve)

	pages := http.NewServeMux()
	pages.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page) })
	pages.HandleFunc("GET /host", func(w http.ResponseWriter, _ *http.Request) { name, _ := os.Hostname(); fmt.Fprintln(w, name) })
	pages.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "well") })
	pages.HandleFunc("/echo", echo)
	events := make(chan struct{})
	pages.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { sendEvents(w, r, events) })
	pages.HandleFunc("POST /events", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case events <- struct{}{}:
		case <-r.Context().Done():
		}
	})
	pages.HandleFunc("PUT /sink", sink)
	pages.HandleFunc("GET /source", source)
	server := &http.Server{Handler: pages, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	listen(failed, ":8080", server.Serve)
	listen(failed, ":8081", server.Serve)
	fmt.Fprintln(os.Stderr, <-failed)
	os.Exit(1)
}

// listen serves on a port, in the background.
func listen(failed chan<- error, addr string, serve func(net.Listener) error) {
	go func() {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			err = serve(l)
		}
		failed <- err
	}()
}

// page shows by a script which guest has served it, and at which name.
const page = `<!doctype html><p id=text>no script has run</p>
<script>fetch("/host").then(a => a.text()).then(host => { document.getElementById("text").textContent = host.trim() + " at " + location.host })</script>
`

// echo returns each message of a WebSocket.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // from any page
	if err != nil {
		return
	}
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, message) != nil {
			return
		}
	}
}

// sendEvents sends an event for each that is asked for.
func sendEvents(w http.ResponseWriter, r *http.Request, asked <-chan struct{}) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	for n := 0; out.Flush() == nil; n++ {
		select {
		case <-asked:
			fmt.Fprintf(w, "data: %d\n\n", n)
		case <-r.Context().Done():
			return
		}
	}
}

// sink answers with the size and the sum of what it gets.
func sink(w http.ResponseWriter, r *http.Request) {
	sum := payload.Sum()
	if n, err := io.Copy(sum, r.Body); err == nil { // else the client has gone
		fmt.Fprintf(w, "%d %x", n, sum.Sum64())
	}
}

// source sends as many bytes as are asked for, in parts with a pause after each.
func source(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	pause, err := time.ParseDuration(r.URL.Query().Get("pause"))
	if err != nil {
		_, _ = io.Copy(w, payload.Reader(size)) // the client has gone
		return
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for body := payload.Reader(size); ; {
		if n, err := io.CopyN(w, body, 1<<10); n == 0 || err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// health is a gRPC service with an answer, an error and a stream.
type health struct {
	healthpb.UnimplementedHealthServer
}

// Check answers with a trailer.
func (health) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if r.Service != "" {
		return nil, status.Errorf(codes.NotFound, "no %s", r.Service)
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("x-served", "yes")); err != nil {
		return nil, err
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// Watch sends three states, and ends with an error.
func (health) Watch(_ *healthpb.HealthCheckRequest, s grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	for i := range 3 {
		if err := s.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_ServingStatus(i)}); err != nil {
			return err
		}
	}
	return status.Error(codes.Aborted, "enough")
}
