package link

import (
	"context"

	"github.com/hatchvm/hatch/internal/network"
)

// Traffic implements network.Attacher. The host receives what the guest sends, so
// that Rx and Tx swap.
func (l *Links) Traffic(ctx context.Context, v network.Link) (network.Traffic, error) {
	if err := ctx.Err(); err != nil {
		return network.Traffic{}, err
	}
	n, err := l.bridge.Traffic(v.Tap)
	return network.Traffic{RxBytes: n.TxBytes, TxBytes: n.RxBytes, RxPackets: n.TxPackets, TxPackets: n.RxPackets}, err
}
