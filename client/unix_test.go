package client_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/client"
)

func TestAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/console") {
			conn, err := websocket.Accept(w, r, nil)
			if err == nil {
				_ = conn.Write(r.Context(), websocket.MessageBinary, []byte("login: "))
				_ = conn.Close(websocket.StatusNormalClosure, "")
			}
			return
		}
		if r.Host != "localhost" || r.Header.Get("Authorization") != "" {
			t.Errorf("the request is for %q, with the headers %v", r.Host, r.Header)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	}))
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	defer server.Close()
	transport := &http.Transport{DialContext: client.DialUnix(path)}
	defer transport.CloseIdleConnections()
	for _, opts := range [][]client.Option{nil, {client.WithHTTPClient(&http.Client{Transport: transport})}} {
		c, err := client.New("unix://"+path, "", opts...)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := c.Health(t.Context()); err != nil || h.Status != "ok" {
			t.Errorf("got %+v, %v", h, err)
		}
		console, err := c.VMConsole(t.Context(), "vm_1", true)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(console); err != nil || string(text) != "login: " {
			t.Errorf("the console: %q, %v", text, err)
		}
	}
	gone, err := client.New("unix://"+path+".none", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Health(t.Context()); !client.IsUnreachable(err) || !strings.Contains(err.Error(), "unix://"+path+".none") {
		t.Errorf("no server: %v", err)
	}
	for _, bad := range []string{"unix://host/path", "unix://", "unix:relative"} {
		if _, err := client.New(bad, ""); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
