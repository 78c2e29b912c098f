package admission

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/hatchvm/hatch/internal/errs"
)

// How often a client may present a wrong key: many times at once, and then slowly.
// All processes of this host are one client, behind which a reverse proxy may have
// many, so it may more often.
const (
	triesBurst      = 30
	triesInterval   = 2 * time.Second
	localTriesBurst = 300
	localInterval   = 100 * time.Millisecond
)

// maxTriers bounds the table of clients that have presented wrong keys.
const maxTriers = 4096

// Tries counts wrong keys per client. A client that has presented none has no entry,
// so valid clients take no part in it.
type Tries struct {
	mu sync.Mutex
	by map[Client]*rate.Limiter
}

// NewTries returns an empty count.
func NewTries() *Tries { return &Tries{by: map[Client]*rate.Limiter{}} }

// Attempt authenticates a client by check, which fails with errs.Unauthenticated for a wrong
// key. If the client must wait before it may try another key, wait says how long, and err
// nothing.
//
// A client of the network that has used up its tries gets no check: its answer is the same for
// every key. All clients of a reverse proxy on this host are one client, so there any key is
// checked.
func (t *Tries) Attempt(client Client, check func() error) (wait time.Duration, err error) {
	if client != Local {
		if wait := t.Wait(client); wait > 0 {
			return wait, nil
		}
	}
	if err = check(); errs.Is(err, errs.Unauthenticated) {
		wait = t.Failed(client)
	}
	return wait, err
}

// Wait returns how long the client must wait before it may try another key, 0 if it
// may now. It counts nothing.
func (t *Tries) Wait(client Client) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wait(t.by[client], time.Now())
}

func wait(l *rate.Limiter, now time.Time) time.Duration {
	if l == nil {
		return 0
	}
	missing := 1 - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / float64(l.Limit()) * float64(time.Second))
}

// Failed counts a wrong key, and returns what Wait did before.
func (t *Tries) Failed(client Client) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	l := t.by[client]
	if l == nil {
		makeRoom(t.by, maxTriers, now)
		if client == Local {
			l = rate.NewLimiter(rate.Every(localInterval), localTriesBurst)
		} else {
			l = rate.NewLimiter(rate.Every(triesInterval), triesBurst)
		}
		t.by[client] = l
	}
	before := wait(l, now)
	l.AllowN(now, 1)
	return before
}

// makeRoom removes one limiter from a table that has limit of them: of a few by chance the
// one with the most of its burst left. So an attacker with many addresses or keys displaces
// itself before it displaces one that has used up its burst, and a removal costs little.
func makeRoom[K comparable](by map[K]*rate.Limiter, limit int, now time.Time) {
	if len(by) < limit {
		return
	}
	const few = 16
	seen, most := 0, -1.0
	var removed K
	for key, l := range by { // in an order by chance
		if left := l.TokensAt(now) / float64(l.Burst()); left > most {
			most, removed = left, key
		}
		if seen++; seen == few {
			break
		}
	}
	delete(by, removed)
}
