//go:build system

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// testPublishedPorts reaches the guests through ports of the host.
func (s *service) testPublishedPorts(t *testing.T) {
	t.Run("clients are told apart", func(t *testing.T) {
		requirePage(t, "127.0.0.2", twoPort)
		if err := tryPage(t, "127.0.0.1", twoPort); err == nil {
			t.Error("a client that is not allowed reads a page")
		}
	})
	t.Run("a connection wakes it", func(t *testing.T) {
		s.sleep(t, s.vm)
		before, began := s.wakes(t, s.vm), time.Now()
		requirePage(t, "127.0.0.1", onePort)
		took(t, "a connection to a published port of a sleeping guest", began)
		if woken := s.wakes(t, s.vm) - before; woken != 1 {
			t.Errorf("it was woken %d times", woken)
		}
	})
	t.Run("without a network", func(t *testing.T) {
		port := s.inner.Ports[0].Host
		requirePage(t, "127.0.0.1", port)
		s.sleep(t, s.inner)
		s.restart(t, syscall.SIGKILL)
		requirePage(t, "127.0.0.1", port)
	})
}

// testChangedPorts publishes other ports of a running guest.
func (s *service) testChangedPorts(t *testing.T) {
	s.hatch(t, "set", s.vm.ID, "-p", "18080:8080", "--unpublish", "8081")
	requirePage(t, "127.0.0.1", 18080)
	for _, closed := range []int{onePort, twoPort} {
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", closed)); err == nil {
			_ = conn.Close()
			t.Errorf("port %d is still open", closed)
		}
	}
}

// requirePage reads a guest's page through a port of the host, from an address of the host.
func requirePage(t *testing.T, from string, port int) {
	t.Helper()
	if err := tryPage(t, from, port); err != nil {
		t.Fatalf("the page on port %d: %v", port, err)
	}
}

func tryPage(t *testing.T, from string, port int) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), normalReply)
	defer cancel()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	transport := &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/health", port), nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return requireWell(resp)
}
