// Package id makes the random ids of all objects of the API, and the text of
// secrets.
//
// It knows no objects; the store checks whether an id is in use. Start at [New].
package id

import "crypto/rand"

// Alphabets to draw from.
const (
	Lower = "abcdefghijklmnopqrstuvwxyz0123456789"
	Mixed = Lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// length is how many letters follow the prefix of an id: 62 random bits.
const length = 12

// New returns prefix and 12 random lower-case letters and digits.
func New(prefix string) string { return prefix + Random(Lower, length) }

// Random returns n letters of the alphabet, each equally likely. The alphabet
// has 1 to 256 letters of one byte.
func Random(alphabet string, n int) string {
	unbiased := 256 - 256%len(alphabet)
	text := make([]byte, 0, n)
	var chunk [64]byte
	for len(text) < n {
		_, _ = rand.Read(chunk[:]) // never fails; see crypto/rand
		for _, b := range chunk {
			if int(b) < unbiased && len(text) < n {
				text = append(text, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	return string(text)
}
