package main

import (
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// clean makes a foreign string fit for one line of a terminal: without control
// characters, escape sequences and marks that reverse the direction of text.
func clean(s string) string {
	var b strings.Builder
	f := cleaner{w: &b}
	_, _ = f.Write([]byte(s)) // a strings.Builder does not fail
	return strings.Join(strings.FieldsFunc(b.String(), func(r rune) bool { return r == '\n' || r == '\t' }), " ")
}

// cleaner passes text on to w without control characters and escape sequences;
// lines and tabs stay. It keeps its place between writes.
type cleaner struct {
	w       io.Writer
	state   cleanerState
	partial []byte // the beginning of a rune, from the last write
}

type cleanerState int

const (
	inText      cleanerState = iota
	afterEscape              // an ESC was read
	inCSI                    // ESC [ … up to a final byte
	inString                 // ESC ] and the like … up to BEL, ESC \ or the line's end
)

// Write filters p.
func (f *cleaner) Write(p []byte) (int, error) {
	rest := append(f.partial, p...)
	f.partial = nil
	kept := make([]byte, 0, len(rest))
	for len(rest) > 0 {
		if !utf8.FullRune(rest) {
			f.partial = append([]byte(nil), rest...)
			break
		}
		r, size := utf8.DecodeRune(rest)
		if f.keep(r) {
			kept = utf8.AppendRune(kept, r)
		}
		rest = rest[size:]
	}
	if _, err := f.w.Write(kept); err != nil {
		return 0, err
	}
	return len(p), nil
}

// keep takes in one rune and reports whether it is text.
func (f *cleaner) keep(r rune) bool {
	if r == '\n' {
		f.state = inText // no sequence swallows more than its line
		return true
	}
	switch f.state {
	case afterEscape:
		f.state = next(r)
		return false
	case inCSI:
		if r >= '@' && r <= '~' {
			f.state = inText
		}
		return false
	case inString:
		switch r {
		case '\a':
			f.state = inText
		case '\x1b':
			f.state = afterEscape
		}
		return false
	}
	if r == '\x1b' {
		f.state = afterEscape
	}
	return r == '\t' || !unicode.IsControl(r) && !unicode.Is(unicode.Cf, r)
}

// next is the state after ESC and r.
func next(r rune) cleanerState {
	switch {
	case r == '[':
		return inCSI
	case strings.ContainsRune("]PX^_", r):
		return inString
	case r >= ' ' && r <= '/', r == '\x1b':
		return afterEscape // an intermediate byte; one more follows
	}
	return inText
}
