//go:build system

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// testWebSocket sends messages both ways over a socket that stays open while its guest
// sleeps.
func (s *service) testWebSocket(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws://"+proxyAddr+"/echo", &websocket.DialOptions{Host: "service.localhost", HTTPClient: direct}) //nolint:bodyclose // it is the connection
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	exchange := func(message string) {
		t.Helper()
		if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(ctx); err != nil || string(got) != message {
			t.Fatalf("sent %q, got %q, %v", message, got, err)
		}
	}
	for i := range 20 {
		exchange(fmt.Sprint("message ", i))
	}
	s.sleep(t, s.vm)
	before, began := s.wakes(t, s.vm), time.Now()
	exchange("to a sleeping guest")
	took(t, "a message that wakes", began)
	if woken := s.wakes(t, s.vm) - before; woken != 1 {
		t.Errorf("it was woken %d times", woken)
	}
	exchange("to a guest that is awake")
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}

// testGRPC calls a gRPC server in a guest: an answer with a trailer, an error, a stream,
// and a call that wakes.
func (s *service) testGRPC(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+proxyAddr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("calls.localhost"), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	calls := healthpb.NewHealthClient(conn)
	check := func() {
		t.Helper()
		var trailer metadata.MD
		got, err := calls.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Trailer(&trailer))
		if err != nil || got.Status != healthpb.HealthCheckResponse_SERVING || len(trailer["x-served"]) != 1 {
			t.Fatalf("got %v, %v, trailer %v", got, err, trailer)
		}
	}
	check()
	if _, err := calls.Check(ctx, &healthpb.HealthCheckRequest{Service: "it"}); status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no it" {
		t.Errorf("an error of the guest's: %v", err)
	}
	stream, err := calls.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if got, err := stream.Recv(); err != nil || int(got.Status) != i {
			t.Errorf("message %d of a stream: %v, %v", i, got, err)
		}
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the end of a stream: %v", err)
	}
	s.sleep(t, s.vm)
	began := time.Now()
	check()
	took(t, "a call that wakes", began)
}

// testEvents has the guest send an event only when the one before has arrived.
func (s *service) testEvents(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	stream, err := s.fetch(ctx, http.MethodGet, "/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	for i := range 5 {
		asked, err := s.fetch(ctx, http.MethodPost, "/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = asked.Body.Close()
		if !lines.Scan() || lines.Text() != fmt.Sprint("data: ", i) || !lines.Scan() {
			t.Fatalf("event %d: got %q, %v", i, lines.Text(), lines.Err())
		}
	}
}
