package route

import (
	"context"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// ErrUnknown is what a caller learns of a host name that leads nowhere, and of one
// without a route that it shows no credentials for.
var ErrUnknown = errs.New(errs.NotFound, "unknown_host", "there is nothing at this host name").
	WithHint("check the name; a name of the form PORT-VM needs an API key or a signed link")

// maxNames bounds the names that are kept in memory of each kind: those that lead
// somewhere, and others, of which anyone can send any number.
const maxNames = 16384

// names are the host names that were resolved before, while the version of the store's
// names is the same.
type names struct {
	version uint64
	known   map[string]Target
	unknown map[string]struct{}
}

func newNames() names { return names{known: map[string]Target{}, unknown: map[string]struct{}{}} }

// at empties the names if they are of another version.
func (n *names) at(version uint64) {
	if n.version != version {
		*n = newNames()
		n.version = version
	}
}

// keep adds an entry, and removes any other if there are too many.
func keep[V any](m map[string]V, name string, value V) {
	if len(m) >= maxNames {
		for some := range m {
			delete(m, some)
			break
		}
	}
	m[name] = value
}

// Resolve returns where the host of a request leads. A port and a dot at its end are
// ignored, and so is the case of letters. Errors: errs.NotFound, which is [ErrUnknown].
func (s *Service) Resolve(ctx context.Context, host string) (Target, error) {
	name, ok := canonical(host)
	if !ok {
		return Target{}, ErrUnknown
	}
	if t, done, err := s.kept(name); done {
		return t, err
	}
	select {
	case s.lookups <- struct{}{}:
	case <-ctx.Done():
		return Target{}, ctx.Err()
	}
	defer func() { <-s.lookups }()
	version := s.Store.NamesVersion() // before the database is read
	t, err := s.lookUp(ctx, name)
	if err != nil && !errs.Is(err, errs.NotFound) {
		return Target{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names.at(version) // if it has gone up since, the next caller forgets this again
	if err != nil {
		keep(s.names.unknown, name, struct{}{})
		return Target{}, ErrUnknown
	}
	keep(s.names.known, name, t)
	return t, nil
}

// Certifies returns [ErrUnknown] for a host name that is to have no TLS certificate of
// its own: that nothing is at, or that no route has. Anyone can name each port of each
// VM; certificates for all of them would use up what an ACME server gives, and would
// publish which VMs there are.
func (s *Service) Certifies(ctx context.Context, host string) error {
	t, err := s.Resolve(ctx, host)
	if err == nil && t.RouteID == "" {
		return ErrUnknown
	}
	return err
}

// kept returns what is known of a name without the database.
func (s *Service) kept(name string) (t Target, done bool, err error) {
	version := s.Store.NamesVersion()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names.at(version)
	if t, done = s.names.known[name]; done {
		return t, true, nil
	}
	if _, done = s.names.unknown[name]; done {
		return t, true, ErrUnknown
	}
	return t, false, nil
}

// maxPortDigits bounds the port in a host: doors repeat the host in headers.
const maxPortDigits = 5

// canonical returns a host name in the form in which names are compared.
func canonical(host string) (name string, ok bool) {
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		port := host[i+1:]
		if len(port) > maxPortDigits || strings.Trim(port, "0123456789") != "" {
			return "", false
		}
		host = host[:i]
	}
	name = strings.ToLower(strings.TrimSuffix(host, "."))
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	}
	return name, name != "" && len(name) <= maxDomain && !strings.ContainsFunc(name, odd)
}

// lookUp resolves a name by the database. Errors: errs.NotFound.
func (s *Service) lookUp(ctx context.Context, name string) (Target, error) {
	label, below := strings.CutSuffix(name, "."+s.Domain)
	switch {
	case !below:
		return s.served(ctx, "", name)
	case label == "" || strings.Contains(label, "."):
		return Target{}, ErrUnknown
	case !implicitForm.MatchString(label):
		return s.served(ctx, label, "")
	}
	return s.implicit(ctx, label)
}

func (s *Service) served(ctx context.Context, subdomain, domain string) (Target, error) {
	r, v, err := s.Store.ServedRoute(ctx, subdomain, domain)
	if err != nil {
		return Target{}, err
	}
	t := r.Target()
	t.generation = v.Generation
	return t, nil
}

// implicit resolves PORT-VM. Callers always need credentials.
func (s *Service) implicit(ctx context.Context, label string) (Target, error) {
	digits, vm, _ := strings.Cut(label, "-")
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || digits[0] == '0' {
		return Target{}, ErrUnknown
	}
	id := ""
	if len(vm) > 3 && (vm[:3] == "vm-" || vm[:3] == "vm_") { // "_" is not for host names
		id = "vm_" + vm[3:]
	}
	v, err := s.Store.VMNamed(ctx, id, vm)
	if err != nil {
		return Target{}, err
	}
	if !v.Implicit.allowed(s.Implicit) {
		return Target{}, ErrUnknown
	}
	return Target{
		VMID: v.ID, OwnerID: v.OwnerID, Port: int(port), AutoWake: true, Auth: Auth{Mode: Key}, Upstream: HTTP1, generation: v.Generation,
	}, nil
}
