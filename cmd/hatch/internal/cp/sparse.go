package cp

import (
	"bytes"
	"io"
	"os"
)

// blockSize is the size of the smallest hole, in bytes: the block of most file systems.
const blockSize = 4 << 10

var zeroBlock [blockSize]byte

// holes writes a new file, without its blocks of zeros: they take no space.
type holes struct {
	file *os.File
	end  int64 // bytes written so far, holes included
}

// Write implements io.Writer.
func (h *holes) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		rest := p[written:]
		block := rest[:min(len(rest), blockSize-int(h.end%blockSize))]
		data := 0 // bytes up to the next block of zeros
		for len(block) > 0 && !bytes.Equal(block, zeroBlock[:len(block)]) {
			data += len(block)
			block = rest[data:min(len(rest), data+blockSize)]
		}
		if data == 0 {
			data = len(block)
		} else if _, err := h.file.WriteAt(rest[:data], h.end); err != nil {
			return written, err
		}
		written += data
		h.end += int64(data)
	}
	return written, nil
}

// copyWithHoles writes all of content to a new file.
func copyWithHoles(file *os.File, content io.Reader) error {
	h := &holes{file: file}
	if _, err := io.Copy(h, content); err != nil {
		return err
	}
	return file.Truncate(h.end) // the last block may be a hole
}
