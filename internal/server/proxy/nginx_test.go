//go:build system

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkAgainstNginx compares the door with nginx before the same server: requests a
// second, the 99th percentile of their times, and the pace of a large body.
func BenchmarkAgainstNginx(b *testing.B) {
	const large = 1 << 30
	guest := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			rw.Header().Set("Content-Length", fmt.Sprint(large))
			_, _ = io.CopyN(rw, zeros{}, large)
			return
		}
		_, _ = io.WriteString(rw, strings.Repeat("x", 1024))
	})
	w := newWorld(b, guest)
	ours := w.front.Listener.Addr().String()
	nginx := startNginx(b, w.address)
	for _, conns := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
			for b.Loop() {
				report(b, "hatch", ours, conns)
				report(b, "nginx", nginx, conns)
			}
		})
	}
	b.Run("large", func(b *testing.B) {
		for b.Loop() {
			for name, addr := range map[string]string{"hatch": ours, "nginx": nginx} {
				r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+addr+"/large", nil)
				if err != nil {
					b.Fatal(err)
				}
				r.Host = "web.localhost"
				began := time.Now()
				resp, err := w.front.Client().Do(r)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				if err != nil || n != large {
					b.Fatal(n, err)
				}
				_ = resp.Body.Close()
				b.ReportMetric(float64(n>>20)/time.Since(began).Seconds(), name+"-MiB/s")
			}
		}
	})
}

// loadTime is how long each load lasts.
const loadTime = 3 * time.Second

// report puts a load on a server, with connections that are kept.
func report(b *testing.B, name, addr string, conns int) {
	b.Helper()
	var mu sync.Mutex
	var times []time.Duration
	var all sync.WaitGroup
	end := time.Now().Add(loadTime)
	for range conns {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer conn.Close()
			in, mine := bufio.NewReader(conn), []time.Duration(nil)
			for time.Now().Before(end) {
				began := time.Now()
				_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n")
				resp, err := http.ReadResponse(in, nil) //nolint:bodyclose // the connection is closed
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
				}
				if err != nil || resp.StatusCode != http.StatusOK {
					b.Error(resp, err)
					return
				}
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			times = append(times, mine...)
		})
	}
	all.Wait()
	if len(times) == 0 {
		b.Fatal("no request was answered")
	}
	slices.Sort(times)
	b.ReportMetric(float64(len(times))/loadTime.Seconds(), name+"-req/s")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, name+"-p99-ms")
}

// startNginx starts nginx as a proxy before a server, as its manual advises it with
// connections that are kept, and returns its address.
func startNginx(b *testing.B, target string) (addr string) {
	b.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		b.Fatalf("%v; install Debian's nginx", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr = l.Addr().String()
	_ = l.Close()
	dir := b.TempDir()
	text := fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log %[1]s/error; worker_processes auto; user root;
events { worker_connections 4096; }
http {
	access_log off; proxy_temp_path %[1]s/p; client_body_temp_path %[1]s/c; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	keepalive_requests 1000000; proxy_max_temp_file_size 0;
	upstream guest { server %[2]s; keepalive 1024; }
	server {
		listen %[3]s;
		location / { proxy_pass http://guest; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }
	}
}`, dir, target, addr)
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program, "-c", config, "-e", filepath.Join(dir, "error"))
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			_ = conn.Close()
			return addr
		}
		<-tick.C
	}
	b.Fatal("nginx does not listen")
	return ""
}
