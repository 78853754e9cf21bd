package vhostvsock

// Buffers in pieces: [][]byte without empty slices, as descriptor chains are.

// skip returns vec without its first n bytes. It changes vec.
func skip(vec [][]byte, n int) [][]byte {
	for len(vec) > 0 && n >= len(vec[0]) {
		n -= len(vec[0])
		vec = vec[1:]
	}
	if n > 0 && len(vec) > 0 {
		vec[0] = vec[0][n:]
	}
	return vec
}

// truncate returns vec cut to its first n bytes. It changes vec.
func truncate(vec [][]byte, n int) [][]byte {
	for i, p := range vec {
		if len(p) >= n {
			vec[i] = p[:n]
			return vec[:i+1]
		}
		n -= len(p)
	}
	return vec
}

// total returns the length of vec in bytes.
func total(vec [][]byte) int {
	n := 0
	for _, p := range vec {
		n += len(p)
	}
	return n
}

// scatter copies b over the start of vec, gather the start of vec into b. They
// return the bytes copied.
func scatter(vec [][]byte, b []byte) int {
	n := 0
	for i := 0; i < len(vec) && n < len(b); i++ {
		n += copy(vec[i], b[n:])
	}
	return n
}

func gather(b []byte, vec [][]byte) int {
	n := 0
	for i := 0; i < len(vec) && n < len(b); i++ {
		n += copy(b[n:], vec[i])
	}
	return n
}
