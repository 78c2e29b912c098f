package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain text":                     "plain text",
		"naïve – 日本":                     "naïve – 日本",
		"a\x1b[31mred\x1b[0mb":           "aredb",
		"title\x1b]0;owned\a!":           "title!",
		"link\x1b]8;;http://x\x1b\\text": "linktext",
		"charset\x1b(Bx":                 "charsetx",
		"two\nlines\tand\r\x00":          "two lines and",
		"c1\u009b31m":                    "c131m",
		"rtl\u202egnp.exe":               "rtlgnp.exe",
		"open\x1b]never ended\nnext":     "open next",
	} {
		t.Run(in, func(t *testing.T) {
			if got := clean(in); got != want {
				t.Errorf("%q: got %q, want %q", in, got, want)
			}
		})
	}
}

func TestCleanerKeepsItsPlaceBetweenWrites(t *testing.T) {
	var out bytes.Buffer
	f := &cleaner{w: &out}
	for _, b := range []byte("é\x1b[3") {
		_, _ = f.Write([]byte{b})
	}
	_, _ = f.Write([]byte("1mx"))
	if out.String() != "éx" {
		t.Errorf("got %q", &out)
	}
}

func FuzzCleaner(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\x1b]0;t\x07c\xff\xc3"), 3)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		var whole, parts bytes.Buffer
		_, _ = (&cleaner{w: &whole}).Write(in)
		if i := strings.IndexFunc(whole.String(), func(r rune) bool { return r != '\n' && r != '\t' && unicode.IsControl(r) }); i >= 0 {
			t.Fatalf("a control character is left in %q", whole.String())
		}
		cut = min(max(cut, 0), len(in))
		c := &cleaner{w: &parts}
		_, _ = c.Write(in[:cut])
		_, _ = c.Write(in[cut:])
		if whole.String() != parts.String() {
			t.Fatalf("cut at %d: %q, whole: %q", cut, parts.String(), whole.String())
		}
	})
}
