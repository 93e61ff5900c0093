import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.lang.reflect.Field;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.pytorch.serve.servingsdk.ModelServerEndpoint;
import org.pytorch.serve.util.TokenAuthorization;

/**
 * Gives TorchServe the keys of a file in place of those that it makes at each start.
 *
 * <p>TorchServe 0.12 has no setting for its keys. It makes them, then its plugins, and opens its ports last. This
 * plugin has no endpoint: it sets the keys when it is made. Where it cannot, the server does not start.
 */
public final class GivenKeys extends ModelServerEndpoint {
    /** Replaces the keys, which then do not expire, and TorchServe's file of them. */
    public GivenKeys() throws Exception {
        String text = Files.readString(Path.of(System.getenv("ANOMALY_GIVEN_KEYS")));
        JsonObject keys = JsonParser.parseString(text).getAsJsonObject();
        for (String kind : new String[] {"inference", "management"}) {
            set(kind + "Key", keys.getAsJsonObject(kind).get("key").getAsString());
            set(kind + "ExpirationTimeMinutes", null);
        }
        // A key that /token made would be known to this server alone.
        set("apiKey", null);
        // It exists, for its owner alone.
        Path file = Path.of(System.getProperty("user.dir"), "key_file.json");
        Files.write(file, text.getBytes(StandardCharsets.UTF_8), StandardOpenOption.TRUNCATE_EXISTING);
    }

    private static void set(String name, Object value) throws ReflectiveOperationException {
        Field field = TokenAuthorization.class.getDeclaredField(name);
        field.setAccessible(true);
        field.set(null, value);
    }
}
