package proxy

import (
	"log/slog"
	"net/http"
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
