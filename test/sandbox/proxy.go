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

// offerProxy serves HTTP inside the namespace of pid from out here.
func offerProxy(pid int) error {
	namespace := "/proc/" + strconv.Itoa(pid) + "/ns/net"
	if err := loopbackUp(namespace); err != nil {
		return err
	}
	var listener net.Listener
	err := inNamespace(namespace, func() (err error) {
		listener, err = net.Listen("tcp", ProxyAddr)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot offer the mirrors: %w", err)
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(proxy)}
	go func() { _ = server.Serve(listener) }() // ends with this process
	return nil
}

// proxy passes requests on, and tunnels what is encrypted.
func proxy(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		tunnel(w, r.Host)
	case r.URL.IsAbs() && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.Host = r.Out.URL.Host }}
		forward.ServeHTTP(w, r)
	default:
		http.Error(w, "only GET of a full address", http.StatusMethodNotAllowed)
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
		_, _ = io.Copy(server, buffered) // the other direction tells when it is over
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(client, server)
}

func loopbackUp(namespace string) error {
	out, err := exec.Command("nsenter", "--net="+namespace, "ip", "link", "set", "lo", "up").CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot turn on loopback: %w: %s", err, out)
	}
	return nil
}
