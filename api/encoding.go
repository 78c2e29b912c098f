package api

import (
	"encoding/base64"
	"unicode/utf8"
)

// Encodings of binary data in JSON.
const (
	EncodingUTF8   = "utf8"
	EncodingBase64 = "base64"
)

// EncodeText returns data as JSON can hold it: as it is, with the encoding "", which
// means utf8, or else in base64.
func EncodeText(data string) (text, encoding string) {
	if utf8.ValidString(data) {
		return data, ""
	}
	return base64.StdEncoding.EncodeToString([]byte(data)), EncodingBase64
}
