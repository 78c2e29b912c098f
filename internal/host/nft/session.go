package nft

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// session keeps two netlink sockets open. Closing one makes the kernel wait for
// earlier deletions, 10 to 30 ms; a transaction on an open one takes 0.1 ms.
type session struct {
	// mu is held during a request: the kernel allows one transaction at a time.
	mu     sync.Mutex
	writer *nftables.Conn // nil while closed
	reader *netlink.Conn  // nil while closed
}

// transact builds one transaction and commits it.
func (s *session) transact(build func(*nftables.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer == nil {
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(setBuffers))
		if err != nil {
			return fmt.Errorf("cannot reach nftables: %w", err)
		}
		s.writer = conn
	}
	err := build(s.writer)
	if err == nil {
		err = s.writer.Flush()
	}
	if err != nil {
		// Unread replies in the socket must not answer the next transaction.
		_ = s.writer.CloseLasting()
		s.writer = nil
	}
	return err
}

// has asks the kernel for one element of a set; the library can only list all of
// them. A missing element is ENOENT.
func (s *session) has(set *nftables.Set, key []byte) error {
	request, err := elementRequest(set, key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reader == nil {
		if s.reader, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			return fmt.Errorf("cannot reach nftables: %w", err)
		}
	}
	if _, err = s.reader.Execute(request); err != nil {
		_ = s.reader.Close()
		s.reader = nil
	}
	return err
}

func (s *session) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var failed error
	if s.writer != nil {
		failed = s.writer.CloseLasting()
	}
	if s.reader != nil {
		failed = errors.Join(failed, s.reader.Close())
	}
	s.writer, s.reader = nil, nil
	return failed
}

// setBuffers makes the buffers large enough for the sets of thousands of guests.
func setBuffers(conn *netlink.Conn) error {
	const bytes = 8 << 20
	if err := conn.SetWriteBuffer(bytes); err != nil {
		return err
	}
	return conn.SetReadBuffer(bytes)
}

func elementRequest(s *nftables.Set, key []byte) (netlink.Message, error) {
	attrs := netlink.NewAttributeEncoder()
	attrs.String(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	attrs.String(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	attrs.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list *netlink.AttributeEncoder) error {
		list.Nested(unix.NFTA_LIST_ELEM, func(elem *netlink.AttributeEncoder) error {
			elem.Nested(unix.NFTA_SET_ELEM_KEY, func(data *netlink.AttributeEncoder) error {
				data.Bytes(unix.NFTA_DATA_VALUE, key)
				return nil
			})
			return nil
		})
		return nil
	})
	body, err := attrs.Encode()
	if err != nil {
		return netlink.Message{}, fmt.Errorf("cannot ask for an element of set %s: %w", s.Name, err)
	}
	header := []byte{byte(s.Table.Family), unix.NFNETLINK_V0, 0, 0}
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM),
			Flags: netlink.Request,
		},
		Data: append(header, body...),
	}, nil
}
