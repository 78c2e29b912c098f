package link

import (
	"context"

	"github.com/hatchvm/hatch/internal/vm"
)

// Traffic implements vm.Network. What the host receives from a TAP is what the
// guest behind it has sent.
func (l *Links) Traffic(ctx context.Context, v vm.Link) (vm.Traffic, error) {
	if err := ctx.Err(); err != nil {
		return vm.Traffic{}, err
	}
	n, err := l.bridge.Traffic(v.Tap)
	return vm.Traffic{RxBytes: n.TxBytes, TxBytes: n.RxBytes, RxPackets: n.TxPackets, TxPackets: n.RxPackets}, err
}
