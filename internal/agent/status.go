package agent

import (
	"reflect"
	"sync"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// statusStore holds the guest's status, and signals its changes.
type statusStore struct {
	mu      sync.Mutex
	status  wire.Status
	changed chan struct{} // closed and replaced at each change
}

// read returns the status, and a channel that is closed when it changes.
func (s *statusStore) read() (wire.Status, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status, s.changed
}

func (s *statusStore) setAddresses(a []wire.Address) {
	s.update(func(st *wire.Status) { st.Addresses = a })
}

func (s *statusStore) setCloudInit(c wire.CloudInit) {
	s.update(func(st *wire.Status) { st.CloudInit = c })
}

func (s *statusStore) setSSH(c wire.SSH) {
	s.update(func(st *wire.Status) { st.SSH = c })
}

func (s *statusStore) update(change func(*wire.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.status
	change(&next)
	if reflect.DeepEqual(next, s.status) {
		return
	}
	s.status = next
	close(s.changed)
	s.changed = make(chan struct{})
}
