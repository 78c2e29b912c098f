// Package payload makes bodies of any size, of which no part can be lost, moved or
// changed without a trace, and their checksum: for a program in a guest and the test
// that talks with it.
//
// It costs little CPU on both sides, because emulated guests have little: a block of
// noise is repeated with its number at its head. It is not for secrets. Start at [Reader].
package payload

import (
	"encoding/binary"
	"hash"
	"hash/crc64"
	"io"
	"math/rand/v2"
)

const block = 64 << 10 // bytes

// Reader returns a body of size bytes. Each call returns the same.
func Reader(size int64) io.Reader {
	b := &blocks{}
	_, _ = rand.NewChaCha8([32]byte{9}).Read(b.now[:]) // never fails
	b.at = block
	return io.LimitReader(b, size)
}

// blocks is a body without an end.
type blocks struct {
	now   [block]byte
	at    int // of now, from which it has not been read
	count uint64
}

// Read implements io.Reader.
func (b *blocks) Read(p []byte) (int, error) {
	if b.at == block {
		binary.BigEndian.PutUint64(b.now[:], b.count)
		b.count++
		b.at = 0
	}
	n := copy(p, b.now[b.at:])
	b.at += n
	return n, nil
}

// Sum returns the hash that bodies are compared by.
func Sum() hash.Hash64 { return crc64.New(crc64.MakeTable(crc64.ECMA)) }

// SumOf returns the sum of the body of size bytes.
func SumOf(size int64) uint64 {
	sum := Sum()
	_, _ = io.Copy(sum, Reader(size)) // neither side fails
	return sum.Sum64()
}
