package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"time"

	"golang.org/x/time/rate"
)

// guard passes a guest's bytes to a yamux session, unchanged. It fails on frames that
// would make hatchd queue unlimited work: streams opened by the guest, and pings faster
// than hatch-agent sends them, each of which yamux answers in a goroutine of its own.
type guard struct {
	r       io.Reader
	pings   *rate.Limiter
	header  [headerSize]byte
	have    int    // bytes of header read
	payload uint32 // bytes left of the current frame
}

// Parts of yamux's framing.
const (
	headerSize = 12
	typeData   = 0
	typePing   = 2
	typeLast   = 3
	flagSYN    = 1
)

var errHostile = errors.New("the guest sent yamux frames that hatch-agent does not send")

func newGuard(r io.Reader) *guard {
	return &guard{r: r, pings: rate.NewLimiter(rate.Every(time.Second), 10)}
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if hostile := g.inspect(p[:n]); hostile != nil {
		return 0, hostile
	}
	return n, err
}

// inspect checks the headers of the frames in b.
func (g *guard) inspect(b []byte) error {
	for len(b) > 0 {
		if g.payload > 0 {
			skip := min(int(g.payload), len(b))
			g.payload -= uint32(skip)
			b = b[skip:]
			continue
		}
		n := copy(g.header[g.have:], b)
		g.have += n
		b = b[n:]
		if g.have < headerSize {
			return nil
		}
		g.have = 0
		if err := g.checkHeader(); err != nil {
			return err
		}
	}
	return nil
}

// checkHeader refuses the frame of a complete header, or skips its payload.
func (g *guard) checkHeader() error {
	kind := g.header[1]
	syn := binary.BigEndian.Uint16(g.header[2:])&flagSYN != 0
	switch {
	case kind > typeLast:
		return errHostile
	case syn && kind != typePing:
		return errHostile
	case syn && !g.pings.Allow():
		return errHostile
	case kind == typeData:
		g.payload = binary.BigEndian.Uint32(g.header[8:])
	}
	return nil
}
