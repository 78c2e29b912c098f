package dns

import (
	"net"
	"net/netip"
	"sync"
)

// limit counts what is under way, in all and per guest.
type limit struct {
	most, mostOfOne int

	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

func newLimit(most, mostOfOne int) *limit {
	return &limit{most: most, mostOfOne: mostOfOne, of: map[netip.Addr]int{}}
}

// take reports whether one more may begin; if so, give must follow.
func (l *limit) take(who netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.most || l.of[who] >= l.mostOfOne {
		return false
	}
	l.all++
	l.of[who]++
	return true
}

func (l *limit) give(who netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[who]--; l.of[who] == 0 {
		delete(l.of, who)
	}
}

// limitedListener closes connections that are too many as soon as they come.
type limitedListener struct {
	net.Listener
	limit *limit
}

func newLimitedListener(l net.Listener, most, mostOfOne int) *limitedListener {
	return &limitedListener{Listener: l, limit: newLimit(most, mostOfOne)}
}

// Accept returns the next connection that is not too many.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if l.limit.take(who) {
			return &limitedConn{Conn: conn, give: sync.OnceFunc(func() { l.limit.give(who) })}, nil
		}
		_ = conn.Close()
	}
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	give func()
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	defer c.give()
	return c.Conn.Close()
}
