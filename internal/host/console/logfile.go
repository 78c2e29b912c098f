package console

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// logFile is a log in two files of bounded size: when the newer is full it
// becomes the older one.
type logFile struct {
	dir  string
	most int64
	file *os.File
	size int64
}

func openLog(dir string, most int64) (*logFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, logName), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the console log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the console log: %w", err), f.Close())
	}
	return &logFile{dir: dir, most: most, file: f, size: st.Size()}, nil
}

func (l *logFile) write(text []byte) error {
	if l.size+int64(len(text)) > l.most && l.size > 0 {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(text)
	l.size += int64(n)
	return err
}

func (l *logFile) rotate() error {
	if err := os.Rename(filepath.Join(l.dir, logName), filepath.Join(l.dir, oldName)); ignoreMissing(err) != nil {
		return err
	}
	next, err := openLog(l.dir, l.most)
	if err != nil {
		return err
	}
	err = l.file.Close()
	l.file, l.size = next.file, next.size
	return err
}

func (l *logFile) close() error { return l.file.Close() }

// past opens the log as it is now, whatever is written to it later.
func (l *logFile) past() past {
	var p past
	if old, err := os.Open(filepath.Join(l.dir, oldName)); err == nil {
		if st, err := old.Stat(); err == nil {
			p.parts = append(p.parts, part{old, st.Size()})
		}
	}
	if now, err := os.Open(filepath.Join(l.dir, logName)); err == nil {
		p.parts = append(p.parts, part{now, l.size})
	}
	return p
}

// past is a log up to one moment: files, each with the size it had.
type past struct{ parts []part }

type part struct {
	file *os.File
	size int64
}

func (p past) close() {
	for _, part := range p.parts {
		_ = part.file.Close() // again after writeTail: harmless
	}
}

// writeTail writes the last tail lines of p, or all of it when tail is
// negative, and closes it. A line that was begun counts as one.
func writeTail(w io.Writer, p past, tail int) error {
	defer p.close()
	var text []byte // at most twice the size of a log file
	for _, part := range p.parts {
		more, err := io.ReadAll(io.NewSectionReader(part.file, 0, part.size))
		if err != nil {
			return fmt.Errorf("cannot read the console log: %w", err)
		}
		text = append(text, more...)
	}
	_, err := w.Write(lastLines(text, tail))
	return err
}

func lastLines(text []byte, tail int) []byte {
	if tail < 0 {
		return text
	}
	from := len(text)
	end := len(bytes.TrimSuffix(text, []byte("\n")))
	for range tail {
		if end < 0 {
			return text
		}
		end = bytes.LastIndexByte(text[:end], '\n')
		from = end + 1
	}
	return text[from:]
}
