package agent

import (
	"reflect"
	"sync"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// board holds the guest's state and tells when it changes.
type board struct {
	mu      sync.Mutex
	status  wire.Status
	changed chan struct{} // closed and replaced at each change
}

func newBoard() *board {
	return &board{
		status:  wire.Status{CloudInit: wire.CloudInit{Status: wire.CloudInitRunning}},
		changed: make(chan struct{}),
	}
}

// read returns the state and a channel that is closed when it is out of date.
func (b *board) read() (wire.Status, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status, b.changed
}

func (b *board) postAddresses(a []wire.Address) {
	b.post(func(st *wire.Status) { st.Addresses = a })
}

func (b *board) postCloudInit(c wire.CloudInit) {
	b.post(func(st *wire.Status) { st.CloudInit = c })
}

func (b *board) post(change func(*wire.Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.status
	change(&next)
	if reflect.DeepEqual(next, b.status) {
		return
	}
	b.status = next
	close(b.changed)
	b.changed = make(chan struct{})
}
