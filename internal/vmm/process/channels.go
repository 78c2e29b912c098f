//go:build linux

package process

import (
	"net"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Conn returns the channel's connection, nil if there is none.
func (p *Process) Conn(ch vmm.Channel) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns[ch]
}

// SetConn makes conn the channel's connection and closes the previous one. On
// error it closes conn. Errors: errs.NotFound when the machine is gone or
// closed.
func (p *Process) SetConn(ch vmm.Channel, conn net.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.channelsClosed {
		_ = conn.Close()
		return Gone(p.handle.ID)
	}
	if old := p.conns[ch]; old != nil {
		_ = old.Close()
	}
	p.conns[ch] = conn
	return nil
}

// CloseConn closes the channel's connection, if there is one. Errors:
// errs.NotFound when the machine is gone or closed.
func (p *Process) CloseConn(ch vmm.Channel) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.channelsClosed {
		return Gone(p.handle.ID)
	}
	if old := p.conns[ch]; old != nil {
		_ = old.Close()
		delete(p.conns, ch)
	}
	return nil
}

// ChannelsClosed reports whether all channels were closed for good, because the
// process has ended or Close was called.
func (p *Process) ChannelsClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.channelsClosed
}

// closeChannels closes all channels for good.
func (p *Process) closeChannels() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.channelsClosed = true
	for _, c := range p.conns {
		_ = c.Close()
	}
}
