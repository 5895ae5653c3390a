import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.record.*;

/**
 * The two ends of the golden tests that only Kafka's own classes can give; README.md has the command.
 *
 *   write         prints one JSON object a line: {"name": ..., "hex": ...}, each a batch of Kafka's writer
 *   read FILE     reads a log of ours with Kafka's parser: checks every CRC, prints every record
 */
public class KafkaGolden {
    static final long T0 = 1_700_000_000_000L;

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("write")) write(); else read(Path.of(arguments[1]));
    }

    static void write() {
        for (CompressionType type : CompressionType.values()) {
            Compression codec = Compression.of(type).build();
            print("mixed-" + type.name, MemoryRecords.withRecords(
                RecordBatch.CURRENT_MAGIC_VALUE, 1000L, codec, TimestampType.CREATE_TIME, 7L, (short) 2, 40, 3, false, mixed()));
            print("uniform-" + type.name, MemoryRecords.withRecords(
                RecordBatch.CURRENT_MAGIC_VALUE, 0L, codec, TimestampType.CREATE_TIME, -1L, (short) -1, -1, 0, false, uniform()));
        }
        try (MemoryRecordsBuilder builder = MemoryRecords.builder(ByteBuffer.allocate(4096), RecordBatch.CURRENT_MAGIC_VALUE,
                Compression.NONE, TimestampType.LOG_APPEND_TIME, 5L, T0 + 999)) {
            for (SimpleRecord record : mixed()) builder.append(record);
            print("append-time", builder.build());
        }
        print("transactional", MemoryRecords.withTransactionalRecords(9L, Compression.NONE, 11L, (short) 1, 0, 0, mixed()));
        print("commit", MemoryRecords.withEndTransactionMarker(12L, T0, 0, 11L, (short) 1, new EndTransactionMarker(ControlRecordType.COMMIT, 6)));
        print("abort", MemoryRecords.withEndTransactionMarker(12L, T0, 0, 11L, (short) 1, new EndTransactionMarker(ControlRecordType.ABORT, 6)));
        ByteBuffer empty = ByteBuffer.allocate(DefaultRecordBatch.RECORD_BATCH_OVERHEAD);
        DefaultRecordBatch.writeEmptyHeader(empty, RecordBatch.CURRENT_MAGIC_VALUE, 11L, (short) 1, 3, 20L, 29L, 0,
            TimestampType.CREATE_TIME, T0, true, false);
        empty.flip();
        print("empty", MemoryRecords.readableRecords(empty));
    }

    static SimpleRecord[] mixed() {
        Header[] headers = {new RecordHeader("type", bytes("created")), new RecordHeader("empty", new byte[0]),
            new RecordHeader("null", (byte[]) null), new RecordHeader("größe", bytes("ü"))};
        return new SimpleRecord[] {
            new SimpleRecord(T0, bytes("key"), bytes("value")),
            new SimpleRecord(T0 + 70_000, null, bytes("null key")),
            new SimpleRecord(T0 - 5, bytes("null value"), null),
            new SimpleRecord(T0, bytes(""), bytes("")),
            new SimpleRecord(T0 + 1, bytes("headers"), bytes("x".repeat(200)), headers),
        };
    }

    static SimpleRecord[] uniform() {
        List<SimpleRecord> records = new ArrayList<>();
        for (int i = 0; i < 300; i++) records.add(new SimpleRecord(T0 + i / 100, bytes(String.format("k%04d", i)),
            bytes("value"), new Header[] {new RecordHeader("n", bytes("1"))}));
        return records.toArray(new SimpleRecord[0]);
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static void print(String name, MemoryRecords records) {
        byte[] raw = new byte[records.sizeInBytes()];
        records.buffer().duplicate().get(raw);
        System.out.printf("{\"name\": \"%s\", \"hex\": \"%s\"}%n", name, HexFormat.of().formatHex(raw));
    }

    static void read(Path path) throws Exception {
        MemoryRecords records = MemoryRecords.readableRecords(ByteBuffer.wrap(Files.readAllBytes(path)));
        long count = 0, hash = 0;
        for (MutableRecordBatch batch : records.batches()) {
            batch.ensureValid();
            System.out.printf("%s codec=%s control=%b transactional=%b%n", batch, batch.compressionType().name, batch.isControlBatch(), batch.isTransactional());
            for (org.apache.kafka.common.record.Record record : batch) {
                record.ensureValid();
                if (count++ < 40) System.out.printf("  %d %d %s %s %s%n", record.offset(), record.timestamp(), text(record.key()), text(record.value()), List.of(record.headers()));
                if (batch.isControlBatch()) System.out.printf("  %s%n", ControlRecordType.parse(record.key()));
            }
        }
        System.out.printf("%d records, %d bytes valid of %d%n", count, records.validBytes(), Files.size(path));
    }

    static String text(ByteBuffer data) {
        return data == null ? "null" : "\"" + StandardCharsets.UTF_8.decode(data.duplicate()) + "\"";
    }
}
