package dns

import (
	"net"
	"net/netip"
	"sync"
)

// limit bounds how many questions or connections are open, in all and per guest.
type limit struct {
	max, maxPerGuest int

	mu      sync.Mutex
	all     int
	byGuest map[netip.Addr]int
}

func newLimit(most, mostPerGuest int) *limit {
	return &limit{max: most, maxPerGuest: mostPerGuest, byGuest: map[netip.Addr]int{}}
}

// acquire reports whether the guest may open one more; release undoes it.
func (l *limit) acquire(guest netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.max || l.byGuest[guest] >= l.maxPerGuest {
		return false
	}
	l.all++
	l.byGuest[guest]++
	return true
}

func (l *limit) release(guest netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.byGuest[guest]--; l.byGuest[guest] == 0 {
		delete(l.byGuest, guest)
	}
}

// limitedListener closes connections above the limit as soon as it accepts them.
type limitedListener struct {
	net.Listener
	limit *limit
}

func newLimitedListener(l net.Listener, most, mostPerGuest int) *limitedListener {
	return &limitedListener{Listener: l, limit: newLimit(most, mostPerGuest)}
}

// Accept returns the next connection within the limit.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		guest := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if l.limit.acquire(guest) {
			return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { l.limit.release(guest) })}, nil
		}
		_ = conn.Close()
	}
}

// limitedConn counts against the limit until it is closed.
type limitedConn struct {
	net.Conn
	release func()
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
