package dns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxResolvers  = 3               // as many as the C library asks
	checkInterval = 1 * time.Second // between checks whether the file has changed
)

// upstreams are the host's resolvers, read again when resolv.conf changes.
type upstreams struct {
	path string
	self netip.Addr // left out: this server

	mu        sync.Mutex
	checked   time.Time // when the file was last checked
	version   version
	resolvers []string // host:port
}

// version distinguishes the contents of a file.
type version struct {
	changed time.Time
	size    int64
}

// current returns the resolvers in the order to ask them in.
func (u *upstreams) current() ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.checked.IsZero() && time.Since(u.checked) < checkInterval {
		return u.resolvers, nil
	}
	info, err := os.Stat(u.path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's resolvers: %w", err)
	}
	u.checked = time.Now()
	v := version{info.ModTime(), info.Size()}
	if v == u.version {
		return u.resolvers, nil
	}
	resolvers, err := readResolvers(u.path, u.self)
	if err != nil {
		return nil, err
	}
	u.resolvers, u.version = resolvers, v
	return resolvers, nil
}

func readResolvers(path string, self netip.Addr) ([]string, error) {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's resolvers: %w", err)
	}
	var resolvers []string
	for _, server := range conf.Servers {
		addr, err := netip.ParseAddr(server)
		if err != nil || addr == self || len(resolvers) == maxResolvers {
			continue
		}
		resolvers = append(resolvers, net.JoinHostPort(server, conf.Port))
	}
	return resolvers, nil
}
