//go:build system

package e2e

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/hatchvm/hatch/test/sandbox"
)

// The sandbox's addresses.
const (
	uplinkAddr    = sandbox.UplinkAddr
	internetAddr  = sandbox.InternetAddr
	neighbourAddr = sandbox.NeighbourAddr
	metadataAddr  = sandbox.MetadataAddr
	privateAddr   = sandbox.PrivateAddr
	knownName     = "internet.example" // resolves to internetAddr
)

// internet plays the internet: it greets clients on port 80 of each of its
// addresses, receives datagrams on port 80, and resolves names.
type internet struct {
	mu      sync.Mutex
	callers []string // addresses of clients
	heard   []string // datagrams
}

func openInternet(t *testing.T) *internet {
	t.Helper()
	i := &internet{}
	for _, addr := range []string{internetAddr, neighbourAddr, metadataAddr, privateAddr} {
		var listener net.Listener
		onInternet(t, func() (err error) {
			listener, err = net.Listen("tcp", addr+":80")
			return err
		})
		t.Cleanup(func() { _ = listener.Close() })
		go i.greet(listener)
	}
	var datagrams, queries net.PacketConn
	onInternet(t, func() (err error) {
		datagrams, err = net.ListenPacket("udp", internetAddr+":80")
		return err
	})
	t.Cleanup(func() { _ = datagrams.Close() })
	go i.hear(datagrams)
	onInternet(t, func() (err error) {
		queries, err = net.ListenPacket("udp", internetAddr+":53")
		return err
	})
	resolver := &dns.Server{PacketConn: queries, Handler: dns.HandlerFunc(resolve)}
	t.Cleanup(func() { _ = queries.Close() })
	go func() { _ = resolver.ActivateAndServe() }() // ends when its socket is closed
	return i
}

// onInternet calls do in the namespace of the internet.
func onInternet(t *testing.T, do func() error) {
	t.Helper()
	if err := sandbox.OnInternet(do); err != nil {
		t.Fatal(err)
	}
}

func (i *internet) greet(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		i.mu.Lock()
		i.callers = append(i.callers, host)
		i.mu.Unlock()
		fmt.Fprintf(conn, "hello %s\n", host)
		_ = conn.Close()
	}
}

func (i *internet) hear(c net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		i.mu.Lock()
		i.heard = append(i.heard, string(buf[:n]))
		i.mu.Unlock()
	}
}

// seen returns the addresses of all clients so far.
func (i *internet) seen() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string(nil), i.callers...)
}

// datagrams returns the datagrams that have arrived so far.
func (i *internet) datagrams() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.heard)
}

// hasHeard reports whether the datagram has arrived.
func (i *internet) hasHeard(datagram string) bool { return slices.Contains(i.datagrams(), datagram) }

func resolve(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	for _, question := range q.Question {
		switch {
		case question.Name != knownName+".":
			m.Rcode = dns.RcodeNameError
		case question.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
				A:   net.ParseIP(internetAddr),
			})
		}
	}
	_ = w.WriteMsg(m) // the client is gone, or retries
}
