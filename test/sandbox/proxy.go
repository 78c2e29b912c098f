package sandbox

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os/exec"
	"strconv"
	"time"
)

// offerProxy listens as a proxy in the network namespace of pid, and connects
// from this process's own.
func offerProxy(pid int) error {
	namespace := "/proc/" + strconv.Itoa(pid) + "/ns/net"
	if out, err := exec.Command("nsenter", "--net="+namespace, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot turn on loopback: %w: %s", err, out)
	}
	var listener net.Listener
	err := inNamespace(namespace, func() (err error) {
		listener, err = net.Listen("tcp", ProxyAddr)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot offer a proxy: %w", err)
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(proxy)}
	go func() { _ = server.Serve(listener) }() // ends with this process
	return nil
}

// proxy forwards GET and HEAD requests, and tunnels CONNECT.
func proxy(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		tunnel(w, r.Host)
	case r.URL.IsAbs() && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.Host = r.Out.URL.Host }}
		forward.ServeHTTP(w, r)
	default:
		http.Error(w, "only GET and HEAD of an absolute URL", http.StatusMethodNotAllowed)
	}
}

func tunnel(w http.ResponseWriter, host string) {
	server, err := net.DialTimeout("tcp", host, 30*time.Second)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = server.Close() }()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = client.Close() }()
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(server, buffered) // the tunnel ends with the other direction
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(client, server)
}
