package proxy

import (
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What one connection of a client may use.
const (
	headerTimeout = 10 * time.Second
	clientIdle    = 2 * time.Minute
	maxStreams    = 128       // of HTTP/2
	streamBuffer  = 256 << 10 // bytes of a body that the guest has not read yet
	connBuffer    = 1 << 20
)

// NewServer returns a server for the door, which speaks HTTP/1.1 and HTTP/2, with TLS and
// without. It bounds heads and silence before them; a request and its answer may take any
// time.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: clientIdle, MaxHeaderBytes: maxHeader,
		Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:      maxStreams,
			MaxReceiveBufferPerStream: streamBuffer, MaxReceiveBufferPerConnection: connBuffer,
			SendPingTimeout: clientIdle, WriteByteTimeout: writeTimeout,
		},
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

// RedirectToTLS sends clients to the same URL over TLS, at a port.
func RedirectToTLS(port int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if _, port, err := net.SplitHostPort(host); err == nil {
			host = strings.TrimSuffix(host, ":"+port) // with the brackets of an IPv6 address
		}
		if host == "" || r.URL.Host != "" || !strings.HasPrefix(r.RequestURI, "/") {
			http.Error(w, "this is served over TLS only", http.StatusBadRequest)
			return
		}
		if port != 443 {
			host += ":" + strconv.Itoa(port)
		}
		w.Header().Set("Location", "https://"+host+r.RequestURI)
		w.WriteHeader(http.StatusPermanentRedirect)
	})
}
