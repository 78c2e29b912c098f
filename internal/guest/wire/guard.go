package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// guard reads what a guest sends into a yamux session, and ends it on frames
// that would make hatchd pile up work: a stream opened by the guest, or pings
// (yamux answers each in a goroutine of its own) faster than any agent of ours
// sends them. It changes nothing of what passes.
type guard struct {
	r       io.Reader
	pings   Pace
	header  [headerSize]byte
	have    int    // bytes of header
	payload uint32 // bytes of the current frame still to come
}

// The parts of yamux's framing that the guard looks at.
const (
	headerSize = 12
	typeData   = 0
	typePing   = 2
	typeLast   = 3
	flagSYN    = 1
)

var errHostile = errors.New("the guest sent frames that no agent sends")

func newGuard(r io.Reader) *guard {
	return &guard{r: r, pings: Pace{Burst: 10, Every: time.Second}}
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if hostile := g.inspect(p[:n]); hostile != nil {
		return 0, hostile
	}
	return n, err
}

func (g *guard) inspect(b []byte) error {
	for len(b) > 0 {
		if g.payload > 0 {
			skip := min(int(g.payload), len(b))
			g.payload -= uint32(skip)
			b = b[skip:]
			continue
		}
		taken := copy(g.header[g.have:], b)
		g.have += taken
		b = b[taken:]
		if g.have < headerSize {
			return nil
		}
		g.have = 0
		if err := g.frame(); err != nil {
			return err
		}
	}
	return nil
}

func (g *guard) frame() error {
	kind := g.header[1]
	syn := binary.BigEndian.Uint16(g.header[2:])&flagSYN != 0
	switch {
	case kind > typeLast:
		return errHostile
	case syn && kind != typePing:
		return errHostile
	case syn && g.pings.Take(time.Now()) > 0:
		return errHostile
	case kind == typeData:
		g.payload = binary.BigEndian.Uint32(g.header[8:])
	}
	return nil
}

// Pace spreads events: Burst (≥ 1) of them at once, then one per Every. It is
// for one goroutine.
type Pace struct {
	Burst int
	Every time.Duration

	earliest time.Time // when the bucket was, or will be, full
}

// Take counts an event at now and returns how long it should have waited: 0
// while within the pace. An event that has to wait is counted too.
func (p *Pace) Take(now time.Time) time.Duration {
	if p.earliest.Before(now) {
		p.earliest = now
	}
	p.earliest = p.earliest.Add(p.Every)
	return max(0, p.earliest.Sub(now)-time.Duration(p.Burst)*p.Every)
}
