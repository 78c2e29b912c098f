package envd

// Signature is for tests of URLs.
var Signature = signature
