//go:build system

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testPublishedPorts reaches a web server in a guest through a port of the host, also
// when the guest sleeps, or hatchd was killed meanwhile.
func testPublishedPorts(t *testing.T, w *world) {
	body := minimal()
	body.Ports = []api.Port{{Guest: 8080}, {Guest: 9000, Host: 19000, AllowedCIDRs: []string{"127.0.0.2"}}}
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	w.inside(t, v, "mkdir /tmp/www; echo well >/tmp/www/health; httpd -p 8080 -h /tmp/www; httpd -p 9000 -h /tmp/www")
	port := v.Ports[0].Host
	page(t, "127.0.0.1", port)

	t.Run("clients are told apart", func(t *testing.T) {
		page(t, "127.0.0.2", 19000)
		if text, err := tryPage(t, "127.0.0.1", 19000); err == nil {
			t.Errorf("a client that is not allowed reads %q", text)
		}
	})
	t.Run("a connection wakes it", func(t *testing.T) {
		w.sleep(t, v)
		before, began := w.wakes(t, v), time.Now()
		page(t, "127.0.0.1", port)
		took(t, "a connection to a published port of a sleeping guest", began)
		if woken := w.wakes(t, v) - before; woken != 1 {
			t.Errorf("it was woken %d times", woken)
		}
	})
	t.Run("after hatchd was killed", func(t *testing.T) {
		w.stopDaemon(t, syscall.SIGKILL)
		w.startDaemon(t)
		page(t, "127.0.0.1", port)
		w.sleep(t, v)
		w.stopDaemon(t, syscall.SIGKILL)
		w.startDaemon(t)
		page(t, "127.0.0.1", port)
	})
	t.Run("listeners follow a change", func(t *testing.T) {
		w.hatch(t, "set", v.ID, "-p", "18080:8080", "--unpublish", "9000")
		page(t, "127.0.0.1", 18080)
		for _, closed := range []int{port, 19000} {
			if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", closed)); err == nil {
				_ = conn.Close()
				t.Errorf("port %d is still open", closed)
			}
		}
	})
	t.Run("without a network", func(t *testing.T) {
		body := minimal()
		body.EnableNetwork, body.Ports = new(false), []api.Port{{Guest: 8080}}
		v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
		w.inside(t, v, "mkdir /tmp/www; echo well >/tmp/www/health; httpd -p 127.0.0.1:8080 -h /tmp/www")
		page(t, "127.0.0.1", v.Ports[0].Host)
		w.sleep(t, v)
		page(t, "127.0.0.1", v.Ports[0].Host)
	})
}

// page reads the guest's page through a port of the host, from an address of the host.
func page(t *testing.T, from string, port int) {
	t.Helper()
	if text, err := tryPage(t, from, port); err != nil || text != "well" {
		t.Fatalf("the page on port %d is %q, %v", port, text, err)
	}
}

func tryPage(t *testing.T, from string, port int) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), normalReply)
	defer cancel()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	transport := &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/health", port), nil)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(text)), err
}
