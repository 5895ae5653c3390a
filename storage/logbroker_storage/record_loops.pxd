# The C types of record_loops.py's variables, for Cython. What is not named here stays a Python object.
cimport cython


@cython.locals(length=Py_ssize_t)
cpdef Py_ssize_t one_length(object values) except? -1


@cython.locals(
    small=list, end=Py_ssize_t, delta=Py_ssize_t, framings=dict, framing=tuple, parts=list, length=Py_ssize_t,
)
cpdef list frame_each(object values, Py_ssize_t first, bytes timestamp_delta)


@cython.locals(
    small=list, end=Py_ssize_t, before_delta=bytes, known_keys=dict, parts=list, delta=Py_ssize_t, offset=bytes, headers=bytes,
    size=Py_ssize_t, key_length=bytes, value_length=bytes, length=bytes,
)
cpdef tuple encode_each(object records, object deltas, object base_timestamp_ms)


@cython.locals(
    small=list, end=Py_ssize_t, count=Py_ssize_t, parts=list, known=bytes, encoded=bytes, size=Py_ssize_t,
)
cdef bytes _encode_headers(object headers, dict known_keys)


@cython.locals(
    limit=Py_ssize_t, base_offset="long long", offset_zigzag="long long", zigzag="long long", second="long long",
    end=Py_ssize_t, key=bytes, value=bytes, offset="long long", block=bytes, headers=tuple,
)
cpdef Py_ssize_t read_each(
    list records, bytes data, Py_ssize_t position, Py_ssize_t count, object header, object topic, object partition,
    dict known_headers,
) except -1


@cython.locals(position=Py_ssize_t, zigzag="long long", second="long long")
cpdef Py_ssize_t skip_each(bytes data, Py_ssize_t count) except -1


@cython.locals(
    limit=Py_ssize_t, position=Py_ssize_t, index=Py_ssize_t, zigzag="long long", second="long long", end=Py_ssize_t,
    have_keys=bint,
)
cpdef object survey_each(bytes data, Py_ssize_t count)


@cython.locals(zigzag="long long", position=Py_ssize_t, headers=list, key=str)
cdef tuple _parse_headers(bytes block, Py_ssize_t index)
